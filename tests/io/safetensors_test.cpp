#include "src/io/safetensors.h"

#include <array>
#include <bit>
#include <cstring>

#include "tests/io/scratch.h"

namespace lathe {
namespace {

using std::string;

// A file with this header text, which may be invalid, and this many bytes of data.
string file_of(const string& header, size_t data_bytes) {
  string text(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(text.data(), &length, 8);
  return text + header + string(data_bytes, 'd');
}

SafetensorsHeader parse(const string& file) {
  return parse_safetensors_header(std::as_bytes(std::span(file)), file.size(), "x.safetensors");
}

string tensor(const string& name, const string& dtype, const string& shape, const string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

string with_length(uint64_t length, string file) {
  std::memcpy(file.data(), &length, 8);
  return file;
}

struct Hostile {
  const char* what;
  string file;
  const char* complaint;
};

const string kOne = tensor("a", "F32", "[2]", "[0,8]");

std::vector<Hostile> hostile_files() {
  const string sound = file_of("{" + kOne + "}", 8);
  string deep = "{\"a\":";
  for (int i = 0; i < 100'000; ++i) deep += "[";
  string deep_objects;
  for (int i = 0; i < 100'000; ++i) deep_objects += "{\"a\":";
  return {
      {"empty file", "", "too few"},
      {"seven bytes", string(7, '\0'), "too few"},
      {"no header", string(8, '\0'), "not a JSON object"},
      {"length of all ones", with_length(UINT64_MAX, sound), "more than the 100000000 allowed"},
      {"length that wraps with 8", with_length(UINT64_MAX - 7, sound), "allowed"},
      {"length beyond the limit", with_length(100'000'001, sound), "allowed"},
      {"length beyond the file", with_length(sound.size() - 7, sound), "in all"},
      {"truncated header", sound.substr(0, 20), "in all"},
      {"truncated data", sound.substr(0, sound.size() - 1), "truncated"},
      {"one byte too many", sound + "x", "holds 9 bytes"},
      {"length one short", with_length(kOne.size() + 1, sound), "not valid JSON"},
      {"not JSON", file_of("hello", 0), "not a JSON object"},
      {"an array", file_of("[]", 0), "not a JSON object"},
      {"a space first", file_of(" {}", 0), "not a JSON object"},
      {"byte order mark", file_of("\xef\xbb\xbf{}", 0), "not a JSON object"},
      {"NUL and rubbish after", file_of(string("{}\0rubbish", 10), 0), "not a JSON object"},
      {"rubbish after", file_of("{} x", 0), "not valid JSON"},
      {"two objects", file_of("{}{}", 0), "not valid JSON"},
      {"trailing comma", file_of("{" + kOne + ",}", 8), "not valid JSON"},
      {"comment", file_of("{/**/" + kOne + "}", 8), "not valid JSON"},
      {"UTF-8 garbage", file_of("{\"\xff\xfe\":1}", 0), "not valid JSON"},
      {"overlong UTF-8", file_of("{\"\xc0\xaf\":1}", 0), "not valid JSON"},
      {"lone surrogate", file_of("{\"\\ud800\":1}", 0), "not valid JSON"},
      {"deep arrays", file_of(deep, 0), "under \"a\""},
      {"deep objects", file_of(deep_objects, 0), "unknown key \"a\""},
      {"a number for a tensor", file_of("{\"a\":1}", 0), "a number in the wrong place"},
      {"null for a tensor", file_of("{\"a\":null}", 0), "null in the wrong place"},
      {"a string for a tensor", file_of("{\"a\":\"b\"}", 0), "a string in the wrong place"},
      {"an array for a tensor", file_of("{\"a\":[]}", 0), "an array in the wrong place"},
      {"empty tensor object", file_of("{\"a\":{}}", 0), "no dtype"},
      {"no shape", file_of(R"({"a":{"dtype":"F32","data_offsets":[0,0]}})", 0), "no shape"},
      {"no offsets", file_of(R"({"a":{"dtype":"F32","shape":[0]}})", 0), "data_offsets"},
      {"unknown key", file_of(R"({"a":{"dtype":"F32","shap":[0]}})", 0), "unknown key \"shap\""},
      {"dtype twice", file_of(R"({"a":{"dtype":"F32","dtype":"F64"}})", 0), "twice"},
      {"unknown dtype", file_of("{" + tensor("a", "F33", "[2]", "[0,8]") + "}", 8), "F33"},
      {"dtype in lower case", file_of("{" + tensor("a", "f32", "[2]", "[0,8]") + "}", 8), "f32"},
      {"dtype a number", file_of(R"({"a":{"dtype":5}})", 0), "a number in the wrong place"},
      {"dtype with control characters", file_of(R"({"a":{"dtype":"\u001b[2J"}})", 0), "\\u001b"},
      {"shape a string", file_of(R"({"a":{"dtype":"F32","shape":"2"}})", 0),
       "a string in the wrong place"},
      {"shape nested", file_of("{" + tensor("a", "F32", "[[2]]", "[0,8]") + "}", 8), "an array"},
      {"shape negative", file_of("{" + tensor("a", "F32", "[-2]", "[0,8]") + "}", 8), "negative"},
      {"shape minus nought", file_of("{" + tensor("a", "F32", "[-0]", "[0,0]") + "}", 0),
       "negative"},
      {"shape a fraction", file_of("{" + tensor("a", "F32", "[2.0]", "[0,8]") + "}", 8), "2.0"},
      {"shape an exponent", file_of("{" + tensor("a", "F32", "[2e0]", "[0,8]") + "}", 8), "2e0"},
      {"shape beyond 63 bits",
       file_of("{" + tensor("a", "U8", "[9223372036854775808]", "[0,8]") + "}", 8), "63 bits"},
      {"shape beyond 64 bits",
       file_of("{" + tensor("a", "U8", "[18446744073709551617]", "[0,1]") + "}", 1), "number"},
      {"product wraps to the size",
       file_of("{" + tensor("a", "U8", "[4294967297,4294967297,8]", "[0,8]") + "}", 8),
       "more elements"},
      {"product wraps through the type",
       file_of("{" + tensor("a", "F32", "[4611686018427387904]", "[0,0]") + "}", 0),
       "more elements"},
      {"product wraps before a nought",
       file_of("{" + tensor("a", "F32", "[4294967296,4294967296,0]", "[0,0]") + "}", 0),
       "more elements"},
      {"wrong product", file_of("{" + tensor("a", "F32", "[3]", "[0,8]") + "}", 8), "make 12"},
      {"offsets negative", file_of("{" + tensor("a", "F32", "[2]", "[-8,0]") + "}", 8), "negative"},
      {"offsets backwards", file_of("{" + tensor("a", "F32", "[2]", "[8,0]") + "}", 8), "before"},
      {"offsets one", file_of("{" + tensor("a", "F32", "[2]", "[8]") + "}", 8), "pair"},
      {"offsets three", file_of("{" + tensor("a", "F32", "[2]", "[0,8,8]") + "}", 8), "third"},
      {"offsets none", file_of("{" + tensor("a", "F32", "[2]", "[]") + "}", 8), "pair"},
      {"offsets beyond the file", file_of("{" + tensor("a", "F32", "[2]", "[8,16]") + "}", 8),
       "begins at byte 8"},
      {"offsets at the end of the range",
       file_of("{" + tensor("a", "U8", "[8]", "[9223372036854775799,9223372036854775807]") + "}",
               8),
       "begins at"},
      {"overlap", file_of("{" + kOne + "," + tensor("b", "F32", "[2]", "[4,12]") + "}", 12),
       "begins at byte 4"},
      {"same bytes twice", file_of("{" + kOne + "," + tensor("b", "F32", "[2]", "[0,8]") + "}", 8),
       "begins at byte 0"},
      {"hole", file_of("{" + kOne + "," + tensor("b", "F32", "[2]", "[12,20]") + "}", 20),
       "begins at byte 12"},
      {"hole at the start", file_of("{" + tensor("a", "F32", "[2]", "[4,12]") + "}", 12),
       "begins at byte 4"},
      {"same name twice", file_of("{" + kOne + "," + tensor("a", "F32", "[2]", "[8,16]") + "}", 16),
       "twice"},
      {"same name twice, once escaped",
       file_of("{" + kOne + "," + tensor("\\u0061", "F32", "[2]", "[8,16]") + "}", 16), "twice"},
      {"metadata twice", file_of(R"({"__metadata__":{},"__metadata__":{}})", 0), "twice"},
      {"metadata key twice", file_of(R"({"__metadata__":{"k":"1","k":"2"}})", 0), "twice"},
      {"metadata a number", file_of(R"({"__metadata__":{"k":1}})", 0),
       "a number in the wrong place"},
      {"metadata nested", file_of(R"({"__metadata__":{"k":{}}})", 0),
       "an object in the wrong place"},
      {"metadata a string", file_of(R"({"__metadata__":"k"})", 0), "a string in the wrong place"},
  };
}

TEST(SafetensorsHeader, RefusesWhatIsHostileByName) {
  for (const Hostile& hostile : hostile_files()) {
    SCOPED_TRACE(hostile.what);
    const string message = message_of<UserError>([&] { parse(hostile.file); });
    EXPECT_CONTAINS(message, "x.safetensors");
    EXPECT_CONTAINS(message, hostile.complaint);
    EXPECT_EQ(message.find('\n'), string::npos);
    EXPECT_LT(message.size(), 400u);
  }
}

TEST(SafetensorsHeader, TakesWhatIsUnusualButSound) {
  EXPECT_TRUE(parse(file_of("{}", 0)).entries.empty());
  EXPECT_TRUE(parse(file_of("{}      ", 0)).entries.empty());
  EXPECT_EQ(parse(file_of(R"({"__metadata__":{"k":"v","":""}})", 0)).metadata.size(), 2u);
  // Any order in the header; empty tensors and scalars; keys in any order; a name with a NUL.
  const SafetensorsHeader header = parse(file_of(
      "{" + tensor("late", "U8", "[3]", "[4,7]") + "," + tensor("none", "F32", "[0,9]", "[4,4]") +
          "," + R"("scalar":{"data_offsets":[0,4],"shape":[],"dtype":"F32"},)" +
          tensor("\\u0000", "BOOL", "[1,1]", "[7,8]") + "}",
      8));
  ASSERT_EQ(header.entries.size(), 4u);
  EXPECT_EQ(header.entries[0].name, "scalar");
  EXPECT_EQ(header.entries[0].elements(), 1);
  EXPECT_EQ(header.entries[1].name, "none");
  EXPECT_EQ(header.entries[2].shape, (std::vector<int64_t>{3}));
  EXPECT_EQ(header.entries[3].name, string(1, '\0'));
}

TEST(SafetensorsHeader, EveryTruncationIsRefused) {
  const string sound = file_of("{" + kOne + "," + tensor("b", "I64", "[2,1]", "[8,24]") + "}", 24);
  ASSERT_EQ(parse(sound).entries.size(), 2u);
  for (size_t n = 0; n < sound.size(); ++n) {
    EXPECT_THROW(parse(sound.substr(0, n)), UserError) << n;
  }
}

// A header with a flipped bit is refused, or gives entries that still lie inside the file.
TEST(SafetensorsHeader, BitFlipsNeverPointOutsideTheFile) {
  const string sound = file_of("{" + kOne + "," + tensor("b", "I64", "[2,1]", "[8,24]") + "}", 24);
  int refused = 0;
  for (size_t bit = 0; bit < (sound.size() - 24) * 8; ++bit) {
    string flipped = sound;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    try {
      for (const SafetensorsEntry& entry : parse(flipped).entries) {
        EXPECT_LE(entry.begin, entry.end);
        EXPECT_LE(entry.end, 24u);
        EXPECT_EQ(entry.bytes(), entry.elements() * size_of(entry.type));
      }
    } catch (const UserError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 500);
}

// Written by the reference: safetensors_reference.py make.
TEST(SafetensorsReader, ReadsTheReferencesFile) {
  const SafetensorsReader reader(LATHE_IO_FIXTURES "/reference.safetensors");
  EXPECT_EQ(reader.entries().size(), 11u);
  EXPECT_EQ(reader.metadata().at("note"), "line\nand \"quote\"");

  std::array<float, 10> f32;
  reader.read_as_float("f32", f32.data(), 10);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(f32[i], (i - 5) * 0.5f);
  EXPECT_EQ(reader.at("f32").shape, (std::vector<int64_t>{5, 2}));
  std::array<float, 6> f64;
  reader.read_as_float("f64", f64.data(), 6);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(f64[i], (i - 3) * 0.125f);
  std::array<float, 4> half;
  reader.read_as_float("bf16", half.data(), 4);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(half[i], (i - 2) * 0.5f);
  float scalar = 0;
  reader.read_as_float("scalar", &scalar, 1);
  EXPECT_EQ(scalar, 2.5f);
  reader.read_as_float("odd \"name\" \u00e9\u6f22\U0001f600", &scalar, 1);
  EXPECT_EQ(scalar, 1.0f);
  reader.read_as_float("empty", nullptr, 0);
  std::array<int64_t, 3> i64;
  reader.read("i64", DType::int64, i64.data(), 3);
  EXPECT_EQ(i64, (std::array<int64_t, 3>{INT64_MIN, 0, INT64_MAX}));
  std::array<int32_t, 2> i32;
  reader.read("i32", DType::int32, i32.data(), 2);
  EXPECT_EQ(i32, (std::array<int32_t, 2>{-1, 2}));
  std::array<uint8_t, 5> u8;
  reader.read("u8", DType::uint8, u8.data(), 5);
  EXPECT_EQ(u8[4], 4);
  EXPECT_EQ(reader.at("f16").type, SafetensorsType::F16);
  EXPECT_EQ(reader.at("mask").type, SafetensorsType::BOOL);
  EXPECT_EQ(reader.at("mask").bytes(), 3u);
}

TEST(SafetensorsReader, NamesAFileThatHasShrunk) {
  const Scratch scratch;
  const std::vector<float> values(100000, 1.0f);
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    SafetensorsWriter writer(scratch / "a");
    writer.declare("w", dtype, {static_cast<int64_t>(values.size() * 4 / size_of(dtype))});
    writer.write("w", values.data(), values.size() * sizeof(float));
    writer.finish();
    const SafetensorsReader reader(scratch / "a");
    std::filesystem::resize_file(scratch / "a", 4096);
    std::vector<float> out(static_cast<size_t>(reader.at("w").elements()));
    EXPECT_CONTAINS(message_of<CheckError>(
                        [&] { reader.read_as_float("w", out.data(), reader.at("w").elements()); }),
                    (scratch / "a").string());
  }
}

TEST(SafetensorsReader, RefusesWhatDoesNotFitTheCall) {
  const SafetensorsReader reader(LATHE_IO_FIXTURES "/reference.safetensors");
  std::array<float, 16> out;
  EXPECT_EQ(reader.find("absent"), nullptr);
  EXPECT_CONTAINS(message_of<UserError>([&] { reader.at("absent"); }), "no tensor \"absent\"");
  EXPECT_CONTAINS(message_of<UserError>([&] { reader.read_as_float("f32", out.data(), 9); }),
                  "\"f32\" has 10 elements, expected 9");
  EXPECT_CONTAINS(message_of<UserError>([&] { reader.read_as_float("f16", out.data(), 3); }),
                  "F16");
  EXPECT_CONTAINS(message_of<UserError>([&] { reader.read_as_float("i32", out.data(), 2); }),
                  "I32");
  EXPECT_CONTAINS(message_of<UserError>([&] { reader.read("f32", DType::fp64, out.data(), 10); }),
                  "is F32, expected F64");
  EXPECT_THROW(SafetensorsReader("/nonexistent/model.safetensors"), UserError);
}

// What safetensors_reference.py check read.
FileDigest write_sample(const std::filesystem::path& path) {
  SafetensorsWriter writer(path, {{"who", "\u00e9 \"x\""}, {"format", "pt"}});
  writer.declare("moment", DType::fp64, {2});
  writer.declare("position", DType::int64, {1});
  writer.declare("wte.weight", DType::fp32, {3, 4});
  writer.declare("none", DType::fp32, {4, 0});
  writer.declare("scalar", DType::int32, {});
  writer.declare("half", DType::bf16, {3});
  writer.declare("h \"0\"\u00e9", DType::uint8, {3});
  const double moment[] = {0.1, -1e300};
  const int64_t position = int64_t{1} << 40;
  float weight[12];
  for (int i = 0; i < 12; ++i) weight[i] = static_cast<float>(i) / 4;
  const int32_t scalar = -5;
  const bf16 half[] = {bf16(1.0f), bf16(-2.5f), bf16(0.0f)};
  const uint8_t bytes[] = {1, 2, 3};
  writer.write("moment", moment, 16);
  writer.write("position", &position, 8);
  for (size_t from = 0; from < 48; from += 7) {  // pieces that cut through numbers
    writer.write("wte.weight", reinterpret_cast<const char*>(weight) + from,
                 std::min<size_t>(7, 48 - from));
  }
  writer.write("none", nullptr, 0);
  writer.write("scalar", &scalar, 4);
  writer.write("half", half, 6);
  writer.write("h \"0\"\u00e9", bytes, 3);
  return writer.finish();
}

TEST(SafetensorsWriter, WritesWhatTheReferenceReads) {
  const Scratch scratch;
  const FileDigest digest = write_sample(scratch / "a.safetensors");
  EXPECT_EQ(digest, digest_file(scratch / "a.safetensors"));
  if (slurp(scratch / "a.safetensors") != slurp(LATHE_IO_FIXTURES "/written.safetensors")) {
    std::filesystem::copy_file(scratch / "a.safetensors", "written.safetensors",
                               std::filesystem::copy_options::overwrite_existing);
    ADD_FAILURE() << "the layout changed; if on purpose, run tests/io/safetensors_reference.py "
                     "check on ./written.safetensors and make it the fixture";
  }
  const SafetensorsReader reader(scratch / "a.safetensors");
  std::array<float, 12> weight;
  reader.read_as_float("wte.weight", weight.data(), 12);
  for (int i = 0; i < 12; ++i) EXPECT_EQ(weight[i], static_cast<float>(i) / 4);
  EXPECT_EQ(reader.metadata().at("format"), "pt");
}

TEST(SafetensorsWriter, HoldsTheCallerToTheDeclaration) {
  const Scratch scratch;
  const float data[4] = {};
  const auto writer_of = [&] {
    auto writer = std::make_unique<SafetensorsWriter>(scratch / "a");
    writer->declare("x", DType::fp32, {2});
    writer->declare("y", DType::fp32, {2});
    return writer;
  };
  EXPECT_THROW(writer_of()->declare("x", DType::fp32, {1}), CheckError);
  EXPECT_THROW(writer_of()->declare("__metadata__", DType::fp32, {1}), CheckError);
  EXPECT_THROW(writer_of()->declare("z", DType::fp32, {-1}), CheckError);
  EXPECT_THROW(writer_of()->declare("z", DType::fp32, {INT64_MAX, 2}), CheckError);
  EXPECT_THROW(writer_of()->write("y", data, 8), CheckError);
  EXPECT_THROW(writer_of()->write("x", data, 12), CheckError);
  EXPECT_THROW(writer_of()->finish(), CheckError);
  const auto writer = writer_of();
  writer->write("x", data, 8);
  EXPECT_THROW(writer->declare("late", DType::fp32, {1}), CheckError);
  EXPECT_THROW(writer->write("x", data, 4), CheckError);
  writer->write("y", data, 4);
  EXPECT_THROW(writer->finish(), CheckError);
  EXPECT_FALSE(std::filesystem::exists(scratch / "a"));
}

TEST(SafetensorsWriter, WritesNoTensorsAtAll) {
  const Scratch scratch;
  SafetensorsWriter(scratch / "a").finish();
  EXPECT_EQ(slurp(scratch / "a").size(), 16u);
  EXPECT_TRUE(SafetensorsReader(scratch / "a").entries().empty());
}

TEST(SafetensorsType, NamesAndSizesMatchDTypes) {
  for (DType dtype :
       {DType::fp32, DType::bf16, DType::fp64, DType::int32, DType::int64, DType::uint8}) {
    const SafetensorsType type = safetensors_type_of(dtype);
    EXPECT_EQ(dtype_of_safetensors(type), dtype);
    EXPECT_EQ(size_of(type), size_of(dtype));
  }
  EXPECT_EQ(name_of(SafetensorsType::U64), "U64");
  EXPECT_EQ(name_of(SafetensorsType::F8_E4M3), "F8_E4M3");
  EXPECT_EQ(size_of(SafetensorsType::U64), 8u);
}

}  // namespace
}  // namespace lathe
