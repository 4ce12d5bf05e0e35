#include "src/train/mpi_file.h"

#include <mpi.h>

#include <algorithm>

#include "kernels/device/error.h"

namespace lathe {

namespace {

void check(int code, const char* action, const std::filesystem::path& path) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw UserError("--reader mpi-io cannot {} {}: {}", action, path.string(),
                  std::string_view(text, static_cast<size_t>(length)));
}

class MpiShardFile final : public ShardFile {
 public:
  MpiShardFile(const World& world, const std::filesystem::path& path) : world_(world), path_(path) {
    uint64_t bytes = 0;
    open_regular_file(path, &bytes);  // for better error messages than MPI's
    const auto lock = world_.mpi_lock();
    check(MPI_File_open(MPI_COMM_SELF, path.c_str(), MPI_MODE_RDONLY, MPI_INFO_NULL, &file_),
          "open", path);
    MPI_Offset size = 0;
    check(MPI_File_get_size(file_, &size), "read", path);
    size_ = static_cast<uint64_t>(size);
  }
  ~MpiShardFile() override {
    const auto lock = world_.mpi_lock();
    MPI_File_close(&file_);
  }
  MpiShardFile(const MpiShardFile&) = delete;
  MpiShardFile& operator=(const MpiShardFile&) = delete;

  uint64_t size() const override { return size_; }
  void read(uint64_t offset, void* out, size_t bytes) const override {
    constexpr size_t kMost = size_t{1} << 30;  // bytes per call: MPI counts in int
    for (size_t done = 0; done < bytes;) {
      const int part = static_cast<int>(std::min(kMost, bytes - done));
      MPI_Status status;
      const auto lock = world_.mpi_lock();
      const auto place = static_cast<MPI_Offset>(offset) + static_cast<MPI_Offset>(done);
      check(MPI_File_read_at(file_, place, static_cast<char*>(out) + done, part, MPI_BYTE, &status),
            "read", path_);
      int got = 0;
      MPI_Get_count(&status, MPI_BYTE, &got);
      if (got <= 0) {
        throw CheckError(fmt::format("--reader mpi-io: {} was truncated: cannot read byte {}",
                                     path_.string(), offset + done));
      }
      done += static_cast<size_t>(got);
    }
  }

 private:
  const World& world_;
  std::filesystem::path path_;
  MPI_File file_ = MPI_FILE_NULL;
  uint64_t size_ = 0;
};

}  // namespace

OpenShardFile mpi_shard_files(const World& world) {
  if (!world.has_mpi()) {
    throw UserError("--reader mpi-io needs several ranks started by mpirun; use --reader mmap");
  }
  return [&world](const std::filesystem::path& path) {
    return std::make_unique<MpiShardFile>(world, path);
  };
}

}  // namespace lathe
