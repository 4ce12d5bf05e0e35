#include <mpi.h>

#include <chrono>
#include <thread>

#include "src/comm/mpi_collectives.h"
#include "src/comm/watchdog.h"

namespace lathe {

namespace {

constexpr int kQuestionTag = 1, kAnswerTag = 2;

class MpiStatusBoard final : public StatusBoard {
 public:
  MpiStatusBoard(const World& world, const RankGroup& ranks) : world_(world), group_(ranks) {
    const auto lock = world_.mpi_lock();
    comm_ = make_mpi_comm(group_);
  }
  // Only a rank that is ending the job leaves questions that nobody will answer.
  ~MpiStatusBoard() override {
    const auto lock = world_.mpi_lock();
    MPI_Comm_free(&comm_);
  }

  void answer(const Mine& mine) override {
    const auto lock = world_.mpi_lock();
    MPI_Status question{};
    for (int found = 1; found;) {
      MPI_Iprobe(MPI_ANY_SOURCE, kQuestionTag, comm_, &found, &question);
      if (!found) return;
      MPI_Recv(nullptr, 0, MPI_BYTE, question.MPI_SOURCE, kQuestionTag, comm_, MPI_STATUS_IGNORE);
      const CollectiveStatus status = mine();  // small enough to be sent without waiting
      MPI_Send(&status, sizeof(status), MPI_BYTE, question.MPI_SOURCE, kAnswerTag, comm_);
    }
  }

  std::vector<std::optional<CollectiveStatus>> ask(const Mine& mine, double seconds) override {
    std::vector<std::optional<CollectiveStatus>> answers(static_cast<size_t>(group_.size()));
    {
      const auto lock = world_.mpi_lock();
      for (int rank = 0; rank < group_.size(); ++rank) {
        MPI_Request request = MPI_REQUEST_NULL;
        if (rank == group_.rank) continue;
        MPI_Isend(nullptr, 0, MPI_BYTE, rank, kQuestionTag, comm_, &request);
        MPI_Request_free(&request);
      }
    }
    answers[static_cast<size_t>(group_.rank)] = mine();
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    int missing = group_.size() - 1;
    while (missing > 0 && std::chrono::steady_clock::now() < end) {
      answer(mine);  // others may be asking too
      missing -= take_answers(answers);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return answers;
  }

 private:
  int take_answers(std::vector<std::optional<CollectiveStatus>>& answers) {
    const auto lock = world_.mpi_lock();
    int found = 1, taken = 0;
    while (true) {
      MPI_Status source{};
      MPI_Iprobe(MPI_ANY_SOURCE, kAnswerTag, comm_, &found, &source);
      if (!found) return taken;
      CollectiveStatus status;
      MPI_Recv(&status, sizeof(status), MPI_BYTE, source.MPI_SOURCE, kAnswerTag, comm_,
               MPI_STATUS_IGNORE);
      answers[static_cast<size_t>(source.MPI_SOURCE)] = status;
      ++taken;
    }
  }

  const World& world_;
  const RankGroup group_;
  MPI_Comm comm_ = MPI_COMM_NULL;
};

}  // namespace

std::unique_ptr<StatusBoard> make_status_board(const World& world, const RankGroup& ranks) {
  if (!world.has_mpi() || ranks.size() == 1) return nullptr;
  return std::make_unique<MpiStatusBoard>(world, ranks);
}

}  // namespace lathe
