#include "src/comm/world.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <optional>
#include <thread>

#include "kernels/device/error.h"
#include "kernels/device/standard_streams.h"
#include "src/comm/mpi_job.h"

namespace lathe {

namespace {

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "";
}

// MPI and the launcher must give the same number of ranks. An MPI that does not know the launcher
// makes every process a job of its own, and each would train alone.
void check_agreement(const Place& place, const MpiJob& job) {
  if (place.size == 0 || place.size == job.size) return;
  throw UserError(
      "{} started {} processes, but the MPI of this build sees {}: start lathe with the mpirun of "
      "the MPI that it was built with",
      place.launcher, place.size, job.size);
}

// How long rank R waits before it reports an error, so that lower ranks can report the same error
// first.
std::chrono::milliseconds silence(int rank) {
  constexpr int kFirst = 500, kEach = 50, kLongest = 2000;
  return std::chrono::milliseconds(rank == 0 ? 0 : std::min(kFirst + kEach * rank, kLongest));
}

}  // namespace

World::World(int* argc, char*** argv)
    : program_(*argc > 0 ? std::filesystem::path((*argv)[0]).filename().string() : "lathe"),
      place_(find_place([](const char* name) { return std::getenv(name); })) {
  place_.host = host_name();
  const bool started_with_others = place_.size != 1 && place_.launcher != "environment";
  if (!mpi_is_initialized() && !started_with_others) return;
  if (!mpi_is_built()) {
    throw UserError(
        "{} started this process with others, but this build has no MPI: build where MPI is found",
        place_.launcher);
  }
  const MpiJob job = join_mpi(argc, argv);
  has_mpi_ = true;
  owns_mpi_ = job.owned;
  one_at_a_time_ = job.one_at_a_time;
  if (started_with_others) check_agreement(place_, job);
  place_.rank = job.rank;
  place_.size = job.size;
  place_.local_rank = job.local_rank;
  place_.local_size = job.local_size;
  host_ = make_host_exchange(*this);
}

World::~World() {
  host_.reset();
  if (owns_mpi_) leave_mpi();
}

void World::exchange(void* all, const void* mine, size_t bytes, const char* what) const {
  if (host_) {
    host_->exchange(all, mine, bytes, what);
  } else {
    LATHE_CHECK(size() == 1, "without MPI the ranks cannot exchange anything here");
    if (bytes > 0 && all != mine) std::memcpy(all, mine, bytes);
  }
}

void World::set_timeout(double seconds) const {
  if (host_) host_->set_timeout(seconds);
}

std::unique_lock<std::mutex> World::mpi_lock() const {
  return one_at_a_time_ ? std::unique_lock(mpi_mutex_) : std::unique_lock<std::mutex>();
}

void World::abort(int exit_code) const noexcept {
  std::fflush(nullptr);
  if (has_mpi_) abort_mpi(exit_code);
  std::_Exit(exit_code);
}

void World::say(std::string_view sentence) const noexcept {
  try {
    const std::string who = size() > 1 ? fmt::format("rank {}: ", rank()) : "";
    lathe::say(fmt::format("{}: {}{}", program_, who, sentence));
  } catch (...) {  // out of memory: the exit code must do
  }
}

void World::fail(std::string_view sentence, int exit_code) const noexcept {
  std::this_thread::sleep_for(silence(rank()));
  say(sentence);
  abort(exit_code);
}

namespace {

// The job that an exception ends, for a terminate handler, which takes no arguments. One at a time.
const World*& running_world() {
  static const World* world = nullptr;
  return world;
}

// Exceptions that end a rank are not caught, so this runs where they were thrown, before any
// destructor. Destructors would wait for collectives of ranks that wait for this one, or free
// memory that collectives still use.
void end_job() {
  Failure failure{1, "std::terminate was called"};
  if (const std::exception_ptr thrown = std::current_exception()) {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::exception&) {
      failure = current_failure();
    } catch (...) {
      failure.message = "an exception of an unknown type was thrown";
    }
  }
  running_world()->fail(failure.message, failure.exit_code);
}

int run_several(World& world, const std::function<int(World& world)>& body) {
  running_world() = &world;
  const std::terminate_handler former = std::set_terminate(end_job);
  const int exit_code = body(world);
  if (exit_code != 0) world.abort(exit_code);  // the others may be waiting for this rank
  finish_out();
  if (world.has_mpi()) world.exchange(nullptr, nullptr, 0, "end of the program");
  std::set_terminate(former);
  return 0;
}

}  // namespace

int run_ranks(std::string_view program, int argc, char** argv,
              const std::function<int(World& world)>& body) {
  const std::string name(program);
  std::optional<World> world;
  const int joined = run_main(name.c_str(), [&] {
    world.emplace(&argc, &argv);
    return 0;
  });
  if (joined != 0) return joined;
  if (world->size() > 1) return run_several(*world, body);
  return run_main(name.c_str(), [&] { return body(*world); });
}

}  // namespace lathe
