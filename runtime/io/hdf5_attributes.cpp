#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/io/hdf5_impl.h"

namespace longhaul::runtime::hdf5 {
namespace {

constexpr std::size_t kMaxStringBytes = std::size_t{1} << 20;

/// An open attribute that holds one value.
struct Attribute {
  Id id, type;
  H5T_class_t kind = H5T_NO_CLASS;
};

Attribute open_one(const ObjectState& state, const std::string& attribute) {
  const htri_t exists = state.require(H5Aexists(state.id.get(), attribute.c_str()), ExitCode::data,
                                      "cannot look up attribute '", attribute, "'");
  if (exists == 0) state.fail_with(ExitCode::data, "no attribute '", attribute, "'");
  Attribute opened;
  opened.id = state.own(H5Aopen(state.id.get(), attribute.c_str(), H5P_DEFAULT), H5Aclose,
                        ExitCode::data, "cannot open attribute '", attribute, "'");
  opened.type = state.own(H5Aget_type(opened.id.get()), H5Tclose, ExitCode::data,
                          "cannot read the type of attribute '", attribute, "'");
  const Id space = state.own(H5Aget_space(opened.id.get()), H5Sclose, ExitCode::data,
                             "cannot read the sizes of attribute '", attribute, "'");
  if (H5Sget_simple_extent_npoints(space.get()) != 1) {
    state.fail_with(ExitCode::data, "attribute '", attribute, "' holds ",
                    H5Sget_simple_extent_npoints(space.get()), " values; expected 1");
  }
  opened.kind = H5Tget_class(opened.type.get());
  return opened;
}

std::string read_fixed(const ObjectState& state, const Attribute& opened,
                       const std::string& attribute) {
  const std::size_t size = H5Tget_size(opened.type.get());
  if (size == 0 || size > kMaxStringBytes) {
    state.fail_with(ExitCode::data, "attribute '", attribute, "' is a string of ", size,
                    " bytes; at most ", kMaxStringBytes, " are read");
  }
  std::string text(size, '\0');
  state.require(H5Aread(opened.id.get(), opened.type.get(), text.data()), ExitCode::data,
                "cannot read attribute '", attribute, "'");
  if (const auto end = text.find('\0'); end != std::string::npos) text.resize(end);
  return text;
}

std::string read_variable(const ObjectState& state, const Attribute& opened,
                          const std::string& attribute) {
  char* data = nullptr;
  state.require(H5Aread(opened.id.get(), opened.type.get(), &data), ExitCode::data,
                "cannot read attribute '", attribute, "'");
  std::string text;
  if (data != nullptr) {
    text.assign(data, strnlen(data, kMaxStringBytes));
    static_cast<void>(H5free_memory(data));
  }
  return text;
}

void write_one(const ObjectState& state, const std::string& attribute, hid_t disk, hid_t memory,
               const void* value) {
  Session session;
  const Id space = state.own(H5Screate(H5S_SCALAR), H5Sclose, ExitCode::internal, "no dataspace");
  Id id = state.own(
      H5Acreate2(state.id.get(), attribute.c_str(), disk, space.get(), H5P_DEFAULT, H5P_DEFAULT),
      H5Aclose, ExitCode::io, "cannot create attribute '", attribute, "'");
  state.require(H5Awrite(id.get(), memory, value), ExitCode::io, "cannot write attribute '",
                attribute, "'");
  state.require(id.close(), ExitCode::io, "cannot write attribute '", attribute, "'");
}

}  // namespace

bool Object::has_attribute(const std::string& attribute) const {
  Session session;
  return state_->require(H5Aexists(state_->id.get(), attribute.c_str()), ExitCode::data,
                         "cannot look up attribute '", attribute, "'") > 0;
}

std::int64_t Object::int64_attribute(const std::string& attribute) const {
  Session session;
  const Attribute opened = open_one(*state_, attribute);
  if (opened.kind != H5T_INTEGER) {
    state_->fail_with(ExitCode::data, "attribute '", attribute, "' is not an integer");
  }
  std::int64_t value = 0;
  state_->require(H5Aread(opened.id.get(), H5T_NATIVE_INT64, &value), ExitCode::data,
                  "cannot read attribute '", attribute, "'");
  return value;  // HDF5 clamps what int64 cannot hold
}

double Object::float64_attribute(const std::string& attribute) const {
  Session session;
  const Attribute opened = open_one(*state_, attribute);
  if (opened.kind != H5T_INTEGER && opened.kind != H5T_FLOAT) {
    state_->fail_with(ExitCode::data, "attribute '", attribute, "' is not a number");
  }
  double value = 0;
  state_->require(H5Aread(opened.id.get(), H5T_NATIVE_DOUBLE, &value), ExitCode::data,
                  "cannot read attribute '", attribute, "'");
  return value;
}

std::string Object::string_attribute(const std::string& attribute) const {
  Session session;
  const Attribute opened = open_one(*state_, attribute);
  if (opened.kind != H5T_STRING) {
    state_->fail_with(ExitCode::data, "attribute '", attribute, "' is not a string");
  }
  const htri_t variable = state_->require(H5Tis_variable_str(opened.type.get()), ExitCode::data,
                                          "bad type of attribute '", attribute, "'");
  return variable > 0 ? read_variable(*state_, opened, attribute)
                      : read_fixed(*state_, opened, attribute);
}

void Object::set_attribute(const std::string& attribute, std::int64_t value) {
  write_one(*state_, attribute, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void Object::set_attribute(const std::string& attribute, double value) {
  write_one(*state_, attribute, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

void Object::set_attribute(const std::string& attribute, const std::string& value) {
  Session session;
  LONGHAUL_CHECK(value.size() < 60000 && value.find('\0') == std::string::npos, state_->where(),
                 ": attribute '", attribute, "' of ", value.size(), " bytes does not fit a header");
  Id type = state_->own(H5Tcopy(H5T_C_S1), H5Tclose, ExitCode::internal, "no string type");
  state_->require(H5Tset_size(type.get(), value.size() + 1), ExitCode::internal, "string size");
  state_->require(H5Tset_cset(type.get(), H5T_CSET_UTF8), ExitCode::internal, "character set");
  write_one(*state_, attribute, type.get(), type.get(), value.c_str());
}

}  // namespace longhaul::runtime::hdf5
