// The character tokenizer, and its old file format, from before it was written as a BPE without
// merges: {"type": "char", "version": 1, "characters": "..."}.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "src/data/tokenizer.h"

namespace lathe {

// One token for each code point, in the order of their ids. They must be valid and distinct. Throws
// UserError like make_char_tokenizer.
std::unique_ptr<Tokenizer> char_tokenizer_by_id(const std::vector<int32_t>& code_points,
                                                const std::string& source);

std::unique_ptr<Tokenizer> parse_char_tokenizer(const nlohmann::json& json,
                                                const std::string& name);

}  // namespace lathe
