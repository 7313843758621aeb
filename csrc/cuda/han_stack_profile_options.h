// What han_stack_profile is asked to run, from its command line: cases and options.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "plan.h"

namespace hanops::cuda::profile {

inline constexpr const char* kUsage = R"(usage: han_stack_profile [options]
  --features D   width of a row (1024)          --rows N     rows of a group (65536)
  --depth L      layers (16)                    --groups G   independent stacks (1)
  --dtype T      float32, bfloat16, float16 or float64 (bfloat16)
  --inner I      the features are not the last axis: rows are positions, I of which lie side by side (0: the last axis)
  --direction W  forward, inference (no sign bits), backward or all (all)
  --case D,N,L,T[,W[,I]]  one of several cases, in the place of the options above; as often as there are cases
  --rest yes     bfloat16 and float16 keep the rest of y, a byte an element, and du begins with it (no)
  --repeats K    timed rounds of a copy and of each direction, of which the median counts (20)
  --json FILE    every sample, in seconds, rewritten after each case
  --once yes     launch each kernel once and time nothing: for compute-sanitizer and ncu (no)
)";

struct Case {
  int64_t features = 1024, rows = 65536, layers = 16, groups = 1, inner = 0;
  std::string dtype = "bfloat16", direction = "all";
};

struct Options {
  std::vector<Case> cases;
  int64_t repeats = 20;
  bool once = false, rest = false;
  std::string json;
};

[[noreturn]] inline void refuse(const std::string& name, const std::string& wanted, const std::string& got) {
  throw std::invalid_argument(name + " must be " + wanted + ", got " + got);
}

inline Type type_of(const std::string& name) {
  if (name == "float64") return Type::kFloat64;
  if (name == "float32") return Type::kFloat32;
  if (name == "bfloat16") return Type::kBFloat16;
  if (name == "float16") return Type::kFloat16;
  refuse("--dtype", "float64, float32, bfloat16 or float16", name);
}

inline int64_t number(const std::string& name, const std::string& value, int64_t least = 1) {
  int64_t parsed = 0;
  const char* const end = value.data() + value.size();
  const auto [rest, error] = std::from_chars(value.data(), end, parsed);
  if (error != std::errc() || rest != end || parsed < least) {
    refuse(name, "a whole number from " + std::to_string(least), value);
  }
  return parsed;
}

inline bool yes_or_no(const std::string& name, const std::string& value) {
  if (value != "yes" && value != "no") refuse(name, "yes or no", value);
  return value == "yes";
}

inline Case case_of(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream stream(text);
  for (std::string word; std::getline(stream, word, ',');) words.push_back(word);
  if (words.size() < 4 || words.size() > 6) refuse("--case", "D,N,L,T, D,N,L,T,W or D,N,L,T,W,I", text);
  Case c;
  c.features = number("--case", words[0]);
  c.rows = number("--case", words[1]);
  c.layers = number("--case", words[2]);
  c.dtype = words[3];
  if (words.size() >= 5) c.direction = words[4];
  if (words.size() == 6) c.inner = number("--case", words[5], 0);
  return c;
}

inline void check_case(const Case& c) {
  const Type type = type_of(c.dtype);
  const std::string& way = c.direction;
  if (way != "forward" && way != "inference" && way != "backward" && way != "all") {
    refuse("--direction", "forward, inference, backward or all", way);
  }
  if (c.inner == 0) return;
  Stack stack;
  stack.features = static_cast<int>(std::min<int64_t>(c.features, 1 << 30));
  stack.rows = c.rows;
  stack.type = type;
  if (c.rows % c.inner != 0 || !takes_axis(stack)) {
    throw std::invalid_argument("--inner must divide --rows, and have kernels for --features and --dtype");
  }
}

inline Options parse(int count, char** arguments) {
  Options options;
  Case single;
  std::string of_single;  // an option of a single case that was given
  const std::map<std::string, int64_t*> sizes = {{"--features", &single.features},
                                                 {"--rows", &single.rows},
                                                 {"--depth", &single.layers},
                                                 {"--groups", &single.groups},
                                                 {"--inner", &single.inner}};
  const std::map<std::string, std::string*> words = {{"--dtype", &single.dtype}, {"--direction", &single.direction}};
  for (int i = 1; i < count; i += 2) {
    const std::string name = arguments[i];
    if (i + 1 == count) throw std::invalid_argument(name + " needs a value");
    const std::string value = arguments[i + 1];
    if (sizes.count(name)) {
      *sizes.at(of_single = name) = number(name, value, name == "--inner" ? 0 : 1);
    } else if (words.count(name)) {
      *words.at(of_single = name) = value;
    } else if (name == "--case") {
      options.cases.push_back(case_of(value));
    } else if (name == "--repeats") {
      options.repeats = number(name, value);
    } else if (name == "--json") {
      options.json = value;
    } else if (name == "--once") {
      options.once = yes_or_no(name, value);
    } else if (name == "--rest") {
      options.rest = yes_or_no(name, value);
    } else {
      throw std::invalid_argument("unknown option " + name);
    }
  }
  if (!options.cases.empty() && !of_single.empty()) {
    throw std::invalid_argument("--case says all of a case, so " + of_single + " has no place beside it");
  }
  if (options.cases.empty()) options.cases.push_back(single);
  for (const Case& c : options.cases) check_case(c);
  return options;
}

}  // namespace hanops::cuda::profile
