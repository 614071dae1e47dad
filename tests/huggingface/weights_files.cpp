// For tests/huggingface/weights: reads and writes weights, a command a line of standard input, and
// says after each how it went: "0", or the exit code and the error.
//   check FILE                    opens a file and reads it all
//   write ELEMENT FROM TO         writes a file again, its floats as ELEMENT; "same": all as they
//   are shards FOLDER TO MOST NAMES   writes a folder's weights again as shards of at most MOST
//   bytes, in the order
//                                 that the lines of the file NAMES give

#include <fstream>
#include <iostream>
#include <sstream>

#include "runtime/error.h"
#include "runtime/io/safetensors.h"

namespace longhaul {
namespace {

using namespace runtime::safetensors;

std::vector<std::byte> bytes_of(const File& file, const Entry& entry) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(entry.bytes()));
  file.read(entry, 0, bytes);
  return bytes;
}

void check(const std::string& path) {
  const File file(path);
  for (const Entry& entry : file.entries()) static_cast<void>(bytes_of(file, entry));
}

void write(const std::string& element, const std::string& from, const std::string& to) {
  const File file(from);
  std::vector<TensorInfo> tensors;
  for (auto entry = file.entries().rbegin(); entry != file.entries().rend(); ++entry) {
    TensorInfo& tensor = tensors.emplace_back(*entry);
    for (const Element floats : {Element::f32, Element::bf16, Element::f16}) {
      if (element == name(floats)) tensor.element = floats;
    }
  }
  Writer writer(to, tensors, file.metadata());
  while (const Entry* entry = writer.next()) {
    const Entry& source = *file.find(entry->name);
    if (element == "same") {
      writer.append(bytes_of(file, source));
    } else {
      std::vector<float> values(static_cast<std::size_t>(source.elements()));
      file.read_floats(source, 0, values);
      writer.append_floats(values);
    }
  }
  writer.finish();
}

void write_shards(const std::string& folder, const std::string& to, std::int64_t most,
                  const std::string& names) {
  const Weights weights(folder);
  std::vector<TensorInfo> tensors;
  std::ifstream list(names);
  for (std::string line; std::getline(list, line);) tensors.emplace_back(*weights.find(line).entry);
  const std::vector<Shard> shards = deal_to_shards(tensors, most);
  for (const Shard& shard : shards) {
    Writer writer(to + "/" + shard.file, shard.tensors, weights.files().front().metadata());
    while (const Entry* entry = writer.next()) {
      const Weights::Place place = weights.find(entry->name);
      writer.append(bytes_of(*place.file, *place.entry));
    }
    writer.finish();
  }
  if (shards.size() > 1) std::ofstream(to + "/" + kIndexName) << index_text(shards);
}

void follow(const std::string& line) {
  std::istringstream words(line);
  std::string command, first, second, third, fourth;
  words >> command >> first >> second >> third >> fourth;
  if (command == "check") return check(first);
  if (command == "write") return write(first, second, third);
  if (command == "shards") return write_shards(first, second, std::stoll(third), fourth);
  runtime::fail(runtime::ExitCode::usage, "unknown command ", command);
}

}  // namespace
}  // namespace longhaul

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    try {
      longhaul::follow(line);
      std::cout << "0" << std::endl;
    } catch (const longhaul::runtime::Error& error) {
      std::cout << static_cast<int>(error.code()) << " " << error.what() << std::endl;
    }
  }
  return 0;
}
