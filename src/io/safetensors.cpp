#include "src/io/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <unordered_set>

#include "kernels/device/error.h"
#include "src/io/json.h"
#include "src/io/json_text.h"

namespace lathe {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

namespace {

struct TypeRow {
  std::string_view name;
  size_t bytes;
  std::optional<DType> dtype;
};

// In the order of the enumeration.
constexpr std::array<TypeRow, 15> kTypes{{{"BOOL", 1, {}},
                                          {"U8", 1, DType::uint8},
                                          {"I8", 1, {}},
                                          {"F8_E5M2", 1, {}},
                                          {"F8_E4M3", 1, {}},
                                          {"I16", 2, {}},
                                          {"U16", 2, {}},
                                          {"F16", 2, {}},
                                          {"BF16", 2, DType::bf16},
                                          {"I32", 4, DType::int32},
                                          {"U32", 4, {}},
                                          {"F32", 4, DType::fp32},
                                          {"F64", 8, DType::fp64},
                                          {"I64", 8, DType::int64},
                                          {"U64", 8, {}}}};

// Bytes of a tensor; empty if the product overflows.
std::optional<uint64_t> bytes_of(const std::vector<int64_t>& shape, SafetensorsType type) {
  // A zero anywhere makes an empty tensor, but the reference multiplies from left to right and
  // refuses an overflow before the zero. So do we.
  int64_t product = 1;
  for (int64_t d : shape) {
    if (d < 0 || __builtin_mul_overflow(product, d, &product)) return {};
  }
  if (__builtin_mul_overflow(product, static_cast<int64_t>(size_of(type)), &product)) return {};
  return static_cast<uint64_t>(product);
}

// Receives the header's JSON piece by piece and builds the entries. So no JSON tree is ever built,
// and each rule is checked where its piece arrives.
class HeaderBuilder {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  HeaderBuilder(std::string_view file, SafetensorsHeader& header) : file_(file), header_(header) {}

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool number_integer(number_integer_t) { return unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t& text) {
    return unexpected("the number " + text.substr(0, 40));
  }
  bool binary(binary_t&) { return unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) {
    if (place_ != Place::shape && place_ != Place::offsets) return unexpected("a number");
    if (value > INT64_MAX) return unexpected("a number beyond 63 bits");
    if (place_ == Place::shape) {
      entry_.shape.push_back(static_cast<int64_t>(value));
    } else if (offset_count_ < 2) {
      (offset_count_++ == 0 ? entry_.begin : entry_.end) = value;
    } else {
      return unexpected("a third offset");
    }
    return true;
  }

  bool string(string_t& value) {
    if (place_ == Place::metadata) {
      header_.metadata[key_] = std::move(value);
      return true;
    }
    if (place_ != Place::entry || key_ != "dtype") return unexpected("a string");
    for (size_t i = 0; i < kTypes.size(); ++i) {
      if (kTypes[i].name == value) {
        entry_.type = static_cast<SafetensorsType>(i);
        return true;
      }
    }
    fail("has the unknown dtype {}", json_quoted(value.substr(0, 40)));
  }

  bool key(string_t& name) {
    if (place_ == Place::top) {
      key_ = std::move(name);
      if (!names_.insert(key_).second) {
        throw UserError("{}: {} occurs twice in the header; the file is damaged or hostile", file_,
                        json_quoted(key_));
      }
      return true;
    }
    if (place_ == Place::metadata) {
      if (header_.metadata.contains(name)) fail("has the key {} twice", json_quoted(name));
      key_ = std::move(name);
      return true;
    }
    bool& seen = name == "dtype"          ? seen_dtype_
                 : name == "shape"        ? seen_shape_
                 : name == "data_offsets" ? seen_offsets_
                                          : unknown_key(name);
    if (seen) fail("has the key {} twice", json_quoted(name));
    seen = true;
    key_ = std::move(name);
    return true;
  }

  bool start_object(size_t) {
    if (place_ == Place::outside) {
      place_ = Place::top;
    } else if (place_ == Place::top && key_ == "__metadata__") {
      owner_ = key_;
      place_ = Place::metadata;
    } else if (place_ == Place::top) {
      owner_ = key_;
      entry_ = SafetensorsEntry{key_, SafetensorsType::F32, {}, 0, 0};
      seen_dtype_ = seen_shape_ = seen_offsets_ = false;
      offset_count_ = 0;
      place_ = Place::entry;
    } else {
      return unexpected("an object");
    }
    return true;
  }

  bool end_object() {
    if (place_ == Place::entry) {
      finish_entry();
      place_ = Place::top;
    } else if (place_ == Place::metadata) {
      place_ = Place::top;
    } else {
      place_ = Place::done;
    }
    return true;
  }

  bool start_array(size_t) {
    if (place_ == Place::entry && key_ == "shape") {
      place_ = Place::shape;
    } else if (place_ == Place::entry && key_ == "data_offsets") {
      place_ = Place::offsets;
    } else {
      return unexpected("an array");
    }
    return true;
  }

  bool end_array() {
    place_ = Place::entry;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) {
    throw UserError(
        "{}: the safetensors header is not valid JSON at byte {}; the file is damaged "
        "or not a safetensors file",
        file_, position);
  }

 private:
  enum class Place { outside, top, entry, metadata, shape, offsets, done };

  template <typename... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw UserError("{}: {} {}; the file is damaged or not a safetensors file", file_,
                    json_quoted(owner_), fmt::format(format, std::forward<Args>(args)...));
  }

  bool unexpected(const std::string& what) const {
    throw UserError(
        "{}: the safetensors header has {} in the wrong place, under {}; the file is "
        "damaged or not a safetensors file",
        file_, what, json_quoted(place_ == Place::outside || place_ == Place::top ? key_ : owner_));
  }

  bool& unknown_key(const std::string& name) const {
    fail("has the unknown key {}", json_quoted(name));
  }

  void finish_entry() {
    if (!seen_dtype_) fail("has no dtype");
    if (!seen_shape_) fail("has no shape");
    if (!seen_offsets_ || offset_count_ != 2) fail("has no pair of data_offsets");
    if (entry_.end < entry_.begin) {
      fail("ends at byte {}, before it begins at {}", entry_.end, entry_.begin);
    }
    const std::optional<uint64_t> wanted = bytes_of(entry_.shape, entry_.type);
    if (!wanted) fail("has a shape with more elements than 63 bits can count");
    if (*wanted != entry_.bytes()) {
      fail("has {} bytes, but its shape and dtype make {}", entry_.bytes(), *wanted);
    }
    header_.entries.push_back(std::move(entry_));
  }

  std::string_view file_;
  SafetensorsHeader& header_;
  Place place_ = Place::outside;
  std::string key_;    // the last key read
  std::string owner_;  // the tensor, or __metadata__, being read
  SafetensorsEntry entry_;
  bool seen_dtype_ = false, seen_shape_ = false, seen_offsets_ = false;
  int offset_count_ = 0;
  std::unordered_set<std::string> names_;
};

// The tensors must cover the data from the first byte to the last, each byte once.
void check_coverage(std::vector<SafetensorsEntry>& entries, uint64_t data_bytes,
                    std::string_view file) {
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin != covered) {
      throw UserError(
          "{}: {} begins at byte {} of the data, but the tensor before it ends at {}; "
          "the file is damaged or hostile",
          file, json_quoted(entry.name), entry.begin, covered);
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    throw UserError(
        "{}: the tensors add up to {} bytes, but the file holds {} bytes of data; it is "
        "truncated or damaged",
        file, covered, data_bytes);
  }
}

}  // namespace

std::string_view name_of(SafetensorsType type) {
  return kTypes.at(static_cast<size_t>(type)).name;
}
size_t size_of(SafetensorsType type) {
  return kTypes.at(static_cast<size_t>(type)).bytes;
}
std::optional<DType> dtype_of_safetensors(SafetensorsType type) {
  return kTypes.at(static_cast<size_t>(type)).dtype;
}

SafetensorsType safetensors_type_of(DType dtype) {
  for (size_t i = 0; i < kTypes.size(); ++i) {
    if (kTypes[i].dtype == dtype) return static_cast<SafetensorsType>(i);
  }
  LATHE_CHECK(false, "no safetensors type for {}", name_of(dtype));
  return {};
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size,
                                           std::string_view file) {
  if (file_size < 8 || head.size() < 8) {
    throw UserError("{} has {} bytes, too few for a safetensors file", file, file_size);
  }
  uint64_t length = 0;
  std::memcpy(&length, head.data(), 8);
  if (length > kSafetensorsMaxHeader) {
    throw UserError(
        "{}: the safetensors header claims {} bytes, more than the {} allowed; the file "
        "is damaged or not a safetensors file",
        file, length, kSafetensorsMaxHeader);
  }
  if (length > file_size - 8 || length > head.size() - 8) {
    throw UserError(
        "{}: the safetensors header claims {} bytes, but the file has {} in all; it is "
        "truncated or not a safetensors file",
        file, length, file_size);
  }
  const std::string_view text(reinterpret_cast<const char*>(head.data()) + 8, length);
  // The text must start with '{', which excludes a byte order mark, and contain no NUL, which the
  // parser would take for the end.
  if (!text.starts_with('{') || text.find('\0') != std::string_view::npos) {
    throw UserError(
        "{}: the safetensors header is not a JSON object; the file is damaged or not a "
        "safetensors file",
        file);
  }
  SafetensorsHeader header;
  HeaderBuilder builder(file, header);
  nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  header.data_begin = 8 + length;
  check_coverage(header.entries, file_size - header.data_begin, file);
  return header;
}

namespace {

// The beginning of the file, up to the end of its header.
std::vector<std::byte> head_of(const MappedFile& file) {
  constexpr uint64_t kLength = 8;
  std::vector<std::byte> head(std::min(file.size(), kLength));
  file.read(0, head.data(), head.size());
  if (head.size() < kLength) return head;
  uint64_t length = 0;
  std::memcpy(&length, head.data(), kLength);
  if (length > kSafetensorsMaxHeader) return head;
  head.resize(std::min(file.size(), kLength + length));
  file.read(kLength, head.data() + kLength, head.size() - kLength);
  return head;
}

}  // namespace

SafetensorsReader::SafetensorsReader(const std::filesystem::path& path)
    : path_(path),
      file_(path),
      header_(parse_safetensors_header(head_of(file_), file_.size(), path.string())) {
  for (size_t i = 0; i < header_.entries.size(); ++i) index_[header_.entries[i].name] = i;
}

const SafetensorsEntry* SafetensorsReader::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &header_.entries[found->second];
}

const SafetensorsEntry& SafetensorsReader::at(std::string_view name) const {
  const SafetensorsEntry* entry = find(name);
  if (!entry) throw UserError("{}: there is no tensor {}", path_.string(), json_quoted(name));
  return *entry;
}

void SafetensorsReader::read_bytes(const SafetensorsEntry& entry, uint64_t offset, void* out,
                                   size_t bytes) const {
  LATHE_CHECK(offset <= entry.bytes() && bytes <= entry.bytes() - offset, "{} + {} of {}", offset,
              bytes, entry.bytes());
  file_.read(header_.data_begin + entry.begin + offset, out, bytes);
}

namespace {

template <typename T>
void convert(const SafetensorsReader& file, const SafetensorsEntry& entry, int64_t first,
             float* out, int64_t count) {
  constexpr int64_t kPiece = 1 << 16;
  std::vector<T> piece(static_cast<size_t>(std::min(kPiece, count)));
  for (int64_t done = 0; done < count; done += kPiece) {
    const int64_t now = std::min(kPiece, count - done);
    file.read_bytes(entry, static_cast<uint64_t>(first + done) * sizeof(T), piece.data(),
                    static_cast<size_t>(now) * sizeof(T));
    for (int64_t i = 0; i < now; ++i)
      out[done + i] = static_cast<float>(piece[static_cast<size_t>(i)]);
  }
}

void check_elements(const SafetensorsEntry& entry, int64_t elements, const std::string& file) {
  if (entry.elements() != elements) {
    throw UserError("{}: {} has {} elements, expected {}", file, json_quoted(entry.name),
                    entry.elements(), elements);
  }
}

}  // namespace

void SafetensorsReader::read_as_float(std::string_view name, float* out, int64_t elements) const {
  const SafetensorsEntry& entry = at(name);
  check_elements(entry, elements, path_.string());
  read_as_float(entry, 0, out, elements);
}

void SafetensorsReader::read_as_float(const SafetensorsEntry& entry, int64_t first, float* out,
                                      int64_t count) const {
  LATHE_CHECK(first >= 0 && count >= 0 && first <= entry.elements() - count);
  switch (entry.type) {
    case SafetensorsType::F32:
      return read_bytes(entry, static_cast<uint64_t>(first) * sizeof(float), out,
                        static_cast<size_t>(count) * sizeof(float));
    case SafetensorsType::BF16:
      return convert<bf16>(*this, entry, first, out, count);
    case SafetensorsType::F64:
      return convert<double>(*this, entry, first, out, count);
    default:
      throw UserError("{}: {} is {}, which cannot be read as numbers; convert it to F32 or BF16",
                      path_.string(), json_quoted(entry.name), name_of(entry.type));
  }
}

void SafetensorsReader::read(std::string_view name, DType dtype, void* out,
                             int64_t elements) const {
  const SafetensorsEntry& entry = at(name);
  check_elements(entry, elements, path_.string());
  if (dtype_of_safetensors(entry.type) != dtype) {
    throw UserError("{}: {} is {}, expected {}", path_.string(), json_quoted(name),
                    name_of(entry.type), name_of(safetensors_type_of(dtype)));
  }
  read_bytes(entry, 0, out, entry.bytes());
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path,
                                     std::map<std::string, std::string> metadata)
    : file_(path), metadata_(std::move(metadata)) {}

void SafetensorsWriter::declare(std::string_view name, DType dtype, std::vector<int64_t> shape) {
  LATHE_CHECK(!header_written_, "{} is declared after the first data", name);
  LATHE_CHECK(name != "__metadata__", "a tensor may not be called __metadata__");
  LATHE_CHECK(names_.emplace(name, entries_.size()).second, "{} is declared twice", name);
  const SafetensorsType type = safetensors_type_of(dtype);
  const std::optional<uint64_t> bytes = bytes_of(shape, type);
  const uint64_t begin = entries_.empty() ? 0 : entries_.back().end;
  LATHE_CHECK(bytes && *bytes <= INT64_MAX - begin, "{} has an impossible shape", name);
  entries_.push_back({std::string(name), type, std::move(shape), begin, begin + *bytes});
}

void SafetensorsWriter::write_header() {
  std::string text = "{";
  if (!metadata_.empty()) text += "\"__metadata__\":" + nlohmann::json(metadata_).dump() + ",";
  for (const SafetensorsEntry& entry : entries_) {
    text += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}},",
                        nlohmann::json(entry.name).dump(), name_of(entry.type),
                        nlohmann::json(entry.shape).dump(), entry.begin, entry.end);
  }
  if (text.back() == ',') text.pop_back();
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  LATHE_CHECK(text.size() <= kSafetensorsMaxHeader, "a header of {} bytes", text.size());
  const uint64_t length = text.size();
  file_.write(&length, sizeof(length));
  file_.write(text);
  header_written_ = true;
  skip_complete();
}

void SafetensorsWriter::skip_complete() {
  while (current_ < entries_.size() && entries_[current_].end == written_) ++current_;
}

void SafetensorsWriter::write(std::string_view name, const void* data, size_t bytes) {
  if (!header_written_) write_header();
  if (bytes == 0) return;
  LATHE_CHECK(current_ < entries_.size() && entries_[current_].name == name,
              "{} bytes for {}, but the next tensor is {}", bytes, name,
              current_ < entries_.size() ? entries_[current_].name : "none");
  LATHE_CHECK(bytes <= entries_[current_].end - written_, "{} bytes for {}, which lacks {}", bytes,
              name, entries_[current_].end - written_);
  file_.write(data, bytes);
  written_ += bytes;
  skip_complete();
}

FileDigest SafetensorsWriter::finish() {
  if (!header_written_) write_header();
  LATHE_CHECK(current_ == entries_.size(), "{} is not complete",
              current_ < entries_.size() ? entries_[current_].name : "");
  return file_.commit();
}

}  // namespace lathe
