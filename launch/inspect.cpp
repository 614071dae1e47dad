#include "launch/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <iomanip>
#include <map>
#include <sstream>
#include <vector>

#include "launch/checkpoint_path.h"
#include "launch/hf_origin.h"
#include "launch/old_schemes.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/io/checkpoint.h"
#include "runtime/io/corpus.h"
#include "runtime/io/safetensors.h"

namespace longhaul::launch {

namespace fs = std::filesystem;
using runtime::counted;
using runtime::ExitCode;
using runtime::fail;

namespace {

/// Lines of "name   value".
class Report {
 public:
  template <class... Parts>
  void line(const std::string& name, const Parts&... parts) {
    text_ << "  " << std::left << std::setw(18) << name;
    (text_ << ... << parts) << '\n';
  }
  std::ostringstream& text() { return text_; }

 private:
  std::ostringstream text_;
};

std::string fixed(double value, int digits) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(digits) << value;
  return text.str();
}

/// Smallest length that at least `percent` per cent of the documents do not exceed.
std::int64_t percentile(const std::vector<std::int64_t>& sorted, std::int64_t percent) {
  const auto count = std::ssize(sorted);
  const std::int64_t rank = std::max<std::int64_t>(1, (count * percent + 99) / 100);
  return sorted[static_cast<std::size_t>(rank - 1)];
}

void describe_lengths(Report& report, std::vector<std::int64_t> lengths, std::int64_t tokens,
                      bool brief) {
  if (lengths.empty()) return;
  std::ranges::sort(lengths);
  report.line("document lengths", "min ", lengths.front(), ", p10 ", percentile(lengths, 10),
              ", median ", percentile(lengths, 50), ", mean ",
              fixed(static_cast<double>(tokens) / static_cast<double>(lengths.size()), 1), ", p90 ",
              percentile(lengths, 90), ", p99 ", percentile(lengths, 99), ", max ", lengths.back());
  if (brief) return;
  struct Bin {
    std::int64_t documents = 0, tokens = 0;
  };
  std::map<int, Bin> bins;  // by the number of bits: 0, 1, 2-3, 4-7, ...
  for (const std::int64_t length : lengths) {
    Bin& bin = bins[static_cast<int>(std::bit_width(static_cast<std::uint64_t>(length)))];
    ++bin.documents;
    bin.tokens += length;
  }
  std::ostringstream& text = report.text();
  text << "  " << std::setw(18) << "" << std::right << std::setw(25) << "tokens in a document"
       << std::setw(12) << "documents" << std::setw(18) << "share of tokens" << '\n';
  for (const auto& [bits, bin] : bins) {
    const std::int64_t low = bits == 0 ? 0 : std::int64_t{1} << (bits - 1);
    const std::int64_t high = bits == 0 ? 0 : low * 2 - 1;
    const double share =
        tokens == 0 ? 0 : 100.0 * static_cast<double>(bin.tokens) / static_cast<double>(tokens);
    text << "  " << std::setw(18) << "" << std::setw(25)
         << (low == high ? std::to_string(low) : runtime::concat(low, " - ", high)) << std::setw(12)
         << bin.documents << std::setw(17) << fixed(share, 2) << "%\n";
  }
}

/// What the label weights of a corpus come to, from all of them.
std::string weights_text(const runtime::Corpus& corpus) {
  constexpr std::int64_t kPiece = std::int64_t{1} << 16;
  std::int64_t labels = 0;
  double sum = 0;
  std::vector<float> weights;
  for (std::int64_t at = 0; at < corpus.info().tokens; at += kPiece) {
    weights.resize(static_cast<std::size_t>(std::min(kPiece, corpus.info().tokens - at)));
    corpus.read_label_weights(at, weights);
    for (const float weight : weights) {
      labels += weight > 0;
      sum += static_cast<double>(weight);
    }
  }
  return runtime::concat(runtime::hdf5::name(*corpus.info().label_weights), "; ", labels,
                         " tokens weigh more than 0, together ", fmt::format("{:.9g}", sum));
}

std::string inspect_corpus(const fs::path& path, bool brief) {
  const runtime::Corpus corpus = runtime::Corpus::open(path);
  corpus.verify();
  const runtime::CorpusInfo& info = corpus.info();
  Report report;
  report.text() << path.string() << ": corpus, format version " << info.format_version
                << ", intact\n";
  report.line("documents", info.documents);
  report.line("tokens", info.tokens, " (", runtime::hdf5::name(info.token_element), ")");
  report.line("vocabulary", info.vocabulary_size);
  report.line("tokenizer", info.tokenizer);
  if (info.unigram_entropy) {
    report.line("unigram entropy", fixed(*info.unigram_entropy, 4), " nats");
  } else {
    report.line("unigram entropy", "not stored; longhaul inspect --add-entropy ", path.string(),
                " stores it");
  }
  report.line("label weights",
              info.label_weights ? weights_text(corpus) : "none; every label weighs 1");
  report.line("digest", corpus.digest());
  std::vector<std::int64_t> lengths;
  const auto offsets = corpus.documents();
  for (std::size_t i = 1; i < offsets.size(); ++i) lengths.push_back(offsets[i] - offsets[i - 1]);
  describe_lengths(report, std::move(lengths), info.tokens, brief);
  return report.text().str();
}

std::string sizes_text(const std::vector<std::int64_t>& sizes) {
  std::string text;
  for (const std::int64_t size : sizes) text += (text.empty() ? "[" : ",") + std::to_string(size);
  return text + "]";
}

std::int64_t elements(const runtime::TensorInfo& tensor) {
  std::int64_t product = 1;
  for (const std::int64_t size : tensor.sizes) product *= size;
  return product;
}

std::string inspect_checkpoint(const fs::path& folder, std::int64_t step, bool brief) {
  const runtime::Checkpoint checkpoint = runtime::Checkpoint::open(folder, step);
  const runtime::CheckpointMetadata& metadata = checkpoint.metadata();
  Report report;
  report.text() << checkpoint.path().string() << ": checkpoint, format version "
                << runtime::kCheckpointFormatVersion << ", intact\n";
  report.line("step", metadata.step);
  report.line("optimizer step", metadata.optimizer_step);
  report.line("tokens", metadata.tokens);
  report.line("cursor", metadata.cursor);
  report.line("seed", metadata.seed);
  report.line("corpus digest", metadata.corpus_digest);
  if (const auto origin = origin_of(metadata.extra, checkpoint.path().string()))
    report.line("weights from", origin->folder);
  for (const auto& [name, value] : metadata.extra) {
    if (name != kOriginKey) report.line(name, value);
  }
  std::int64_t values = 0, bytes = 0;
  for (const runtime::TensorInfo& tensor : checkpoint.tensors()) {
    values += elements(tensor);
    bytes += elements(tensor) * runtime::size_bytes(tensor.dtype);
  }
  report.line("tensors", checkpoint.tensors().size(), ", ", counted(values, "value"), ", ",
              counted(bytes, "byte"));
  if (brief) {
    report.line("files", checkpoint.files().size());
    return report.text().str();
  }
  for (const runtime::TensorInfo& tensor : checkpoint.tensors()) {
    report.line("", tensor.name, " ", runtime::name(tensor.dtype), " ", sizes_text(tensor.sizes),
                " in ", counted(tensor.slices, "slice"));
  }
  report.line("files", checkpoint.files().size());
  for (const auto& [name, size] : checkpoint.files())
    report.line("", name, " ", counted(size, "byte"));
  const std::string config = translate_config(metadata.config);
  report.text() << "config:\n" << config;
  if (!config.ends_with('\n')) report.text() << '\n';
  return report.text().str();
}

namespace safetensors = runtime::safetensors;

/// Lines of what `tensors` come to, and of each; `file_of` says where one lies, or nothing.
void describe_tensors(Report& report, std::span<const safetensors::Entry* const> tensors,
                      const auto& file_of, bool brief) {
  std::int64_t values = 0, bytes = 0;
  for (const safetensors::Entry* tensor : tensors) {
    values += tensor->elements();
    bytes += tensor->bytes();
  }
  report.line("tensors", tensors.size(), ", ", counted(values, "value"), ", ",
              counted(bytes, "byte"));
  if (brief) return;
  for (const safetensors::Entry* tensor : tensors) {
    report.line("", safetensors::shown(tensor->name), " ", safetensors::name(tensor->element), " ",
                sizes_text(tensor->sizes), file_of(*tensor));
  }
}

void describe_metadata(Report& report, const safetensors::File& file) {
  if (!file.metadata()) return;
  for (const auto& [name, value] : *file.metadata()) {
    report.line("metadata", safetensors::shown(name), " ", safetensors::shown(value));
  }
}

std::string inspect_safetensors(const fs::path& path, bool brief) {
  const safetensors::File file(path);
  Report report;
  report.text() << path.string() << ": safetensors, its header intact\n";
  describe_metadata(report, file);
  std::vector<const safetensors::Entry*> tensors;
  for (const safetensors::Entry& entry : file.entries()) tensors.push_back(&entry);
  describe_tensors(
      report, tensors, [](const auto&) { return ""; }, brief);
  return report.text().str();
}

std::string inspect_weights(const fs::path& folder, bool brief) {
  const safetensors::Weights weights(folder);
  Report report;
  report.text() << folder.string() << ": weights of a Hugging Face folder, all headers intact\n";
  for (const safetensors::File& file : weights.files()) {
    report.line("file", file.path().filename().string(), " ", counted(file.bytes(), "byte"));
    describe_metadata(report, file);
  }
  std::vector<const safetensors::Entry*> tensors;
  for (const auto& place : weights.tensors()) tensors.push_back(place.entry);
  const auto file_of = [&](const safetensors::Entry& tensor) {
    return " in " + weights.find(tensor.name).file->path().filename().string();
  };
  describe_tensors(report, tensors, file_of, brief);
  for (const std::string& name : weights.absent()) {
    report.line("not in its file", safetensors::shown(name), ", which the index gives to one");
  }
  for (const std::string& name : weights.unlisted()) {
    report.line("not in the index", safetensors::shown(name), ", which a file holds");
  }
  return report.text().str();
}

}  // namespace

std::string inspect(const InspectOptions& options) {
  std::error_code code;
  if (!fs::is_directory(options.path, code)) {
    if (!options.add_entropy && options.path.extension() == ".safetensors") {
      return inspect_safetensors(options.path, options.brief);
    }
    if (options.add_entropy) runtime::add_unigram_entropy(options.path);
    return inspect_corpus(options.path, options.brief);
  }
  if (options.add_entropy) {
    fail(ExitCode::usage, "inspect --add-entropy: ", options.path.string(),
         " is a folder; name a corpus file");
  }
  for (const char* name : {safetensors::kWeightsName, safetensors::kIndexName}) {
    if (fs::exists(options.path / name, code)) return inspect_weights(options.path, options.brief);
  }
  const std::optional<CheckpointPlace> place = find_checkpoint(options.path);
  if (!place) {
    fail(ExitCode::data, options.path.string(),
         ": neither a checkpoint nor a folder of checkpoints or of safetensors");
  }
  return inspect_checkpoint(place->folder, place->step, options.brief);
}

}  // namespace longhaul::launch
