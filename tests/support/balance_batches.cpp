#include "tests/support/balance_batches.h"

#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <stdexcept>

namespace longhaul::test {

namespace fs = std::filesystem;

namespace {

std::string contents(const fs::path& path) {
  if (path.extension() != ".gz") {
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    if (!file) throw std::runtime_error(path.string() + " cannot be read");
    return text.str();
  }
  const std::string command = "gzip -dc '" + path.string() + "'";
  std::FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error(command + " cannot be run");
  std::string text;
  char buffer[1 << 16];
  for (std::size_t n = 0; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;)
    text.append(buffer, n);
  if (pclose(pipe) != 0) throw std::runtime_error(command + " failed");
  return text;
}

std::vector<std::string> split(const std::string& line) {
  std::vector<std::string> fields;
  std::istringstream stream(line);
  for (std::string field; std::getline(stream, field, ',');) fields.push_back(field);
  return fields;
}

std::string cell_name(const std::string& mix, const std::string& context,
                      const std::string& servers) {
  return mix + ", " + context + ", " + servers;
}

}  // namespace

std::string BalanceBatch::cell() const {
  return cell_name(mix, std::to_string(context), std::to_string(servers));
}

std::vector<BalanceBatch> read_balance_batches(const fs::path& path) {
  std::istringstream text(contents(path));
  std::string line;
  std::getline(text, line);
  if (line != "mix,context,servers,batch,lengths")
    throw std::runtime_error(path.string() + " has columns " + line);
  std::vector<BalanceBatch> batches;
  while (std::getline(text, line)) {
    const std::vector<std::string> fields = split(line);
    BalanceBatch batch{fields.at(0),
                       std::stoll(fields.at(1)),
                       std::stoi(fields.at(2)),
                       std::stoi(fields.at(3)),
                       {}};
    std::istringstream lengths(fields.at(4));
    for (std::int64_t length = 0; lengths >> length;) batch.lengths.push_back(length);
    batches.push_back(std::move(batch));
  }
  return batches;
}

BalanceReferences read_balance_references(const fs::path& path, const std::string& tolerance) {
  std::istringstream text(contents(path));
  std::string line;
  std::getline(text, line);
  std::map<std::string, std::size_t> columns;
  for (const std::string& column : split(line)) columns.emplace(column, columns.size());
  BalanceReferences references;
  while (std::getline(text, line)) {
    const std::vector<std::string> fields = split(line);
    const auto field = [&](const char* column) { return fields.at(columns.at(column)); };
    if (field("tolerance") != tolerance) continue;
    references[cell_name(field("mix"), field("context"), field("servers"))]
              [std::stoi(field("batch"))] = {std::stod(field("area_mean")),
                                             std::stod(field("ratio_before")),
                                             std::stod(field("ratio_after")),
                                             std::stoll(field("area_max_before")),
                                             std::stoll(field("dispatch_bytes_before")),
                                             std::stoll(field("total_bytes")),
                                             std::stoll(field("peak_receiver_bytes"))};
  }
  return references;
}

}  // namespace longhaul::test
