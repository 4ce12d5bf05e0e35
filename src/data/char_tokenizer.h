// The character tokenizer's file: {"type": "char", "version": 1, "characters": "..."}.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "src/data/tokenizer.h"

namespace lathe {

std::unique_ptr<Tokenizer> parse_char_tokenizer(const nlohmann::json& json,
                                                const std::string& name);

}  // namespace lathe
