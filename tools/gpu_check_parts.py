"""The parts of `make gpu-check`, the most interesting first."""
import gpu_check_build as build
import gpu_check_runs as runs
import gpu_check_speed as speed
import gpu_check_tests as tests
from gpu_check_plan import Part

# Estimates for an H100, made before anything was measured; each run corrects them for its GPU.
PARTS = {
    "build": Part(build.build, estimate=20, least=5, most=600),
    "steps": Part(speed.steps, estimate=35, least=8, most=120),
    "roofline": Part(speed.roofline, estimate=3, least=1, most=30),
    "tests": Part(tests.tests, estimate=90, least=10, most=240),
    "torch": Part(speed.torch, estimate=90, least=8, most=180),
    "ncu": Part(speed.ncu, estimate=40, least=15, most=120),
    "bench": Part(speed.bench, estimate=30, least=8, most=90),
    "talk": Part(runs.talk, estimate=140, least=60, most=900),
    "ab": Part(speed.ab, estimate=110, least=20, most=240),
    "sanitizer": Part(tests.sanitizer, estimate=120, least=25, most=240),
    "ranks": Part(runs.ranks, estimate=40, least=8, most=120),
    "fp32": Part(speed.fp32, estimate=120, least=8, most=180),
}
