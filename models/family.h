#pragma once
// Families of models by name: which keys of a configuration each uses, what they may say, and the
// model that they describe.

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "models/model.h"
#include "models/model_config.h"

namespace longhaul::models {

/// Walks the keys that a family uses, in its own file. Where one is not given that has a value all
/// the same, it sets that.
class FamilyKeys {
 public:
  struct Key {
    std::string name;    ///< "linear_attn_config.num_heads" in a table of its own
    bool given = false;  ///< by the configuration
    bool required = false;
    std::string absent;  ///< what its absence means, for people
  };

  template <class Value>
  void required(const char* name, const Value& value) {
    keys_.push_back({name, is_given(value), true, "required"});
  }
  /// `absent`: what follows, from other keys or as no value.
  template <class Value>
  void optional(const char* name, const Value& value, const char* absent) {
    keys_.push_back({name, is_given(value), false, absent});
  }
  /// A default of the family.
  template <class Value>
  void with_default(const char* name, std::optional<Value>& value, Value otherwise) {
    keys_.push_back({name, is_given(value), false, text(otherwise)});
    if (!value) value = otherwise;
  }
  void with_default(const char* name, std::vector<double>& value, std::vector<double> otherwise);

  const std::vector<Key>& keys() const { return keys_; }
  const Key* find(const std::string& name) const;

 private:
  template <class Value>
  static bool is_given(const std::optional<Value>& value) {
    return value.has_value();
  }
  template <class Element>
  static bool is_given(const std::vector<Element>& list) {
    return !list.empty();
  }
  static std::string text(double value);
  static std::string text(std::int64_t value);
  static std::string text(bool value);
  static std::string text(const std::string& value);

  std::vector<Key> keys_;
};

/// Who hears what is wrong with a configuration. Keys are named without the section.
class Judge {
 public:
  virtual ~Judge() = default;
  /// Whether all of these keys have values that can be judged.
  virtual bool good(std::initializer_list<const char*> keys) const = 0;
  virtual void missing(const std::string& key) = 0;
  /// `what`: "expected a multiple of 4".
  virtual void wrong(const char* key, const std::string& what) = 0;
  /// Element `index` of a list of words is none of `words`.
  virtual void unknown_word(const char* key, std::size_t index,
                            std::span<const std::string> words) = 0;
};

struct Family {
  std::string name;  ///< `model_type` of its config.json
  /// Its keys beside those that are alike in all families: architecture, hidden_size,
  /// num_hidden_layers, vocab_size.
  void (*keys)(ModelConfig& config, FamilyKeys& keys);
  std::vector<std::string> layer_words;  ///< what layers() says
  /// Each layer in its words, of a good configuration.
  std::vector<std::string> (*layers)(const ModelConfig& config);
  /// Sets what follows from other keys, and judges what single keys cannot say.
  void (*check)(ModelConfig& config, Judge& judge);
  /// Of a configuration that is complete and good.
  ModelParts (*parts)(const ModelConfig& config);
};

std::span<const Family> families();
std::vector<std::string> family_names();
/// Throws Error(config) that lists the families.
const Family& family_of(const std::string& architecture);

/// Tokens that the model was first trained for, as its rope_scaling has it: the table's own, the
/// family's at the top, or max_position_embeddings.
std::optional<std::int64_t> original_length(const ModelConfig& config);

/// Sets what the configuration does not give and its family has a value for; tells what is missing
/// or wrong.
void complete(ModelConfig& config, Judge& judge);
/// Throws Error(config) for the first key that is missing or wrong.
void complete(ModelConfig& config);

/// Completes the configuration, whose vocab_size is given, and makes its model. Throws
/// Error(config) for the first key that is missing or wrong.
Model model_of(ModelConfig config, const ModelOptions& options);

}  // namespace longhaul::models
