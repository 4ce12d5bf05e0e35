// build/train: runs src/train.cpp on each rank.
#include "src/train.h"

int main(int argc, char** argv) {
  return lathe::run_ranks("train", argc, argv,
                          [&](lathe::World& world) { return lathe::train(world, argc, argv); });
}
