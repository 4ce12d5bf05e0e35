# The commands of the project. CMake describes the build (CMakeLists.txt, CMakePresets.json).
#   make          installs missing packages, builds into build/
#   make demo     trains a small GPT-2 on the embedded corpus, draws its loss, prints a sample
#   make test     the tests that show a build can be trusted: test-format, test-cuda-on-cpu
#   make test-all everything: test, test-bits, test-long, test-asan, test-tsan, test-plain, test-fuzz
#   make test-cpu, make test-mpi  the tests of the CPU, in build/, for a machine without CUDA's headers
#   make cuda-on-cpu  builds the programs with CUDA on the CPU: build/cuda-on-cpu/train --device cuda
#   make tidy     clang-tidy over kernels, src and tools
#   make coverage the tests' coverage of the CUDA device
#   make docs     writes docs/flags.md from the table of flags
#   make kernel-report  each kernel's use of GPU resources, predicted step times, and what changed; needs no GPU
#   make bench    times operations and whole steps, compared with this machine's peak
#   make gpu-check  tests and measures on this machine's GPU, writes a report; GPU_CHECK_ARGS="--help" shows options
#   make gpu-binaries   fills deps/ with binaries and all dependencies of a build, to copy to a machine with a GPU
#   make gpu-rehearsal  runs gpu-check with those in an almost empty chroot (many minutes)
#   make fuzz     runs the parsers under libFuzzer, FUZZ_SECONDS each (default 600)

SHELL := /bin/bash
FUZZ_SECONDS ?= 600
CTEST := ctest --output-on-failure -j 2 --test-dir
# If deps/ exists, its sources replace the system's packages (tools/carry_deps.sh).
export LATHE_DEPS ?= $(if $(wildcard deps/include),$(CURDIR)/deps)

.PHONY: all build cuda-on-cpu demo test test-all test-bits test-cuda-on-cpu test-long test-cpu test-mpi coverage tidy test-asan test-tsan test-plain test-fuzz test-format docs kernel-report bench gpu-check gpu-binaries gpu-rehearsal fuzz format clean

all: build

build:
	@tools/setup.sh build
	@tools/build.sh release programs

cuda-on-cpu:
	@tools/setup.sh cuda-on-cpu
	@tools/build.sh cuda-on-cpu programs

demo:
	@tools/setup.sh build
	@tools/build.sh release corpus prepare train sample plot
	@tools/demo.sh

test: test-format test-cuda-on-cpu

test-all: test test-bits test-long test-asan test-tsan test-plain test-fuzz

# Compares the results of the programs in build/ with the recorded bits.
test-bits:
	@tools/setup.sh test
	@tools/build.sh release programs
	$(CTEST) build -R '^bits_test$$'

# All tests except the long ones, on both devices. The CUDA device, kernels and host code, runs on the CPU.
test-cuda-on-cpu:
	@tools/setup.sh test
	@tools/build.sh cuda-on-cpu
	$(CTEST) build/cuda-on-cpu -LE long

# The long tests. The test of the kernels' registers needs nvcc, so it runs in build/.
test-long:
	@tools/setup.sh test
	@tools/build.sh release programs
	@tools/build.sh cuda-on-cpu
	$(CTEST) build/cuda-on-cpu -L long
	$(CTEST) build -R '^kernel_report_compiled_test$$'

test-cpu:
	@tools/setup.sh test
	@tools/build.sh release
	$(CTEST) build -LE 'cuda|mpi'

# Several ranks on this machine, under mpirun.
test-mpi:
	@tools/setup.sh test
	@tools/build.sh release
	$(CTEST) build -L mpi

# All tests of the CUDA device except one, which runs the same steps a hundred times.
coverage:
	@tools/setup.sh test
	@tools/build.sh coverage programs cuda_tests
	@find build/coverage -name '*.gcda' -delete
	$(CTEST) build/coverage -L cuda -E '^cuda_step_test$$'
	@tools/coverage.py build/coverage

# The tests of the CPU except the long ones, and the CUDA device's operations on the CPU, under
# AddressSanitizer and UndefinedBehaviorSanitizer.
test-asan:
	@tools/setup.sh test
	@tools/build.sh asan
	$(CTEST) build/asan -LE '^(long|cuda)$$'

# The code that starts threads (loaders, tokenizers) under ThreadSanitizer.
test-tsan:
	@tools/setup.sh test
	@tools/build.sh tsan data_test
	GTEST_FILTER='LoaderTest*:Prepare*' $(CTEST) build/tsan -R '^data_test'

# The build without MPI and oneDNN, which uses plain code instead.
test-plain:
	@tools/setup.sh test
	@tools/build.sh plain train ops_test transformer_test
	$(CTEST) build/plain -R '^(ops_test|transformer_test)$$'

test-fuzz:
	@tools/setup.sh fuzz
	@tools/build.sh fuzz fuzz_targets
	$(CTEST) build/fuzz

test-format:
	@tools/setup.sh test
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -P 2 -n 40 clang-format --dry-run --Werror

# Uses the build that compiles the CUDA sources as C++, because clang does not know nvcc's flags.
tidy:
	@tools/setup.sh tidy
	@tools/build.sh cuda-on-cpu programs
	@tools/tidy.sh build/cuda-on-cpu $(TIDY_FILES)

docs:
	@tools/setup.sh build
	@tools/build.sh release flags_page
	@build/flags_page >docs/flags.md

# Compiles the kernels with the commands of build/ and lists launches with build/cuda-on-cpu.
# KERNEL_REPORT_ARGS="--nvdisasm PROGRAM" counts instructions if nvdisasm is not on the PATH.
kernel-report:
	@tools/setup.sh test
	@[[ -f build/compile_commands.json ]] || cmake --preset release >/dev/null
	@tools/build.sh cuda-on-cpu list_launches
	@python3 tools/kernel_report.py $(KERNEL_REPORT_ARGS)

bench:
	@tools/setup.sh bench
	@tools/build.sh release step_profile bench_device bench_matmul bench_attention
	@tools/bench.sh

# Works offline if LATHE_DEPS names a folder of dependencies or nothing is missing. Takes eight minutes.
gpu-check:
	@[[ -f deps/binaries.tar.xz ]] || tools/setup.sh gpu
	@python3 tools/gpu_check.py $(GPU_CHECK_ARGS)

# For a machine with a GPU and without packages or network.
gpu-binaries:
	@tools/setup.sh test
	@tools/carry_deps.sh deps $(LATHE_TEST_DATA)
	@LATHE_DEPS=$(CURDIR)/deps tools/carry_binaries.sh deps/binaries.tar.xz

gpu-rehearsal: gpu-binaries
	@tools/build.sh cuda-on-cpu programs cuda_tests
	@tests/tools/gpu_rehearsal.py --build-dir build/cuda-on-cpu --compile complete --binaries deps/binaries.tar.xz

fuzz:
	@tools/setup.sh fuzz
	@tools/build.sh fuzz fuzz_targets
	@tests/fuzz/run.sh $(FUZZ_SECONDS)

format:
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format -i

clean:
	rm -rf build
