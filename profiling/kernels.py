"""Names of kernels as ncu and nsys write them, and the part of a step that each belongs to."""
import re

# lathe's own kernels. All others are libraries' (cuBLASLt's products, NCCL).
OWN = re.compile(r"\blathe::")
CLASSES = ("embedding", "forward", "head", "backward", "optimizer", "other")
OF_LAYERS = ("forward", "backward")  # a model of more layers has more of these


def short_name(signature):
    """`void lathe::cuda::(anonymous namespace)::f<__nv_bfloat16, 8>(A)` becomes `f<bf16, 8>`; mangled and
    library names stay unchanged."""
    text = re.sub(r"\(anonymous namespace\)::|<unnamed>::|\blathe::(cuda::)?", "", signature)
    text = text.replace("__nv_bfloat16", "bf16").removeprefix("void ")
    text = re.sub(r"\((int|bool|unsigned int|lathe::Gelu|Gelu)\)", "", text)  # ncu: f<(int)8>
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return text[:at]
    return text


def is_own(signature):
    # _ZN5lathe: as the compiler mangles the namespace.
    return bool(OWN.search(signature)) or signature.startswith("_ZN5lathe")


def places(names, kernels):
    """The indices of these lathe kernels: `forward_kernel` does not match `flash_forward_kernel`."""
    word = re.compile(r"(?:\b|(?<=[0-9]))(?:" + "|".join(kernels) + r")(?:\b|I|E)")
    return [at for at, name in enumerate(names) if is_own(name) and word.search(name)]


NORM_FORWARD = ["forward_kernel", "forward_any_kernel"]  # and the embedding's, which is the first
NORM_BACKWARD = ["backward_kernel", "backward_any_kernel"]
LOSSES = ["streamed_rows_kernel", "resident_rows_kernel"]
OPTIMIZER = ["square_sum_kernel", "adamw_kernel"]
SUMS = ["add_partials_kernel"]  # follow NORM_BACKWARD


def steps_of(names):
    """Splits the kernels of a profile into steps, as ranges of indices. Each step begins with
    begin_step_kernel; without any there is one step."""
    begins = places(names, ["begin_step_kernel"])
    return [range(a, b) for a, b in zip(begins, begins[1:] + [len(names)])] or [range(len(names))]


def classify(names):
    """The class of each kernel of one step, in launch order. Products have uninformative names, so they
    are classified by position. The head begins with the LayerNorm before the first cross-entropy and ends
    before the first product after the sum of the losses; the layers' backward pass ends with its last
    LayerNorm. ValueError if this is not a step of one micro-step."""
    losses, summed = places(names, LOSSES), places(names, ["add_losses_kernel"])
    squares = places(names, OPTIMIZER)
    if not losses or len(summed) != 1 or not squares:
        raise ValueError(f"these {len(names)} kernels are not those of one whole step of one micro-step: "
                         + ", ".join(short_name(name) for name in names[:40]))
    forward = [at for at in places(names, NORM_FORWARD) if at < losses[0]]
    norms = [at for at in places(names, NORM_BACKWARD) if summed[0] < at < squares[0]]
    if len(forward) < 2 or len(norms) < 2:
        raise ValueError("the LayerNorms of a step are missing")
    backward = next(at for at in range(summed[0] + 1, len(names)) if not is_own(names[at]))
    end = norms[-1] + 1
    while end in places(names, SUMS):
        end += 1

    def class_of(at):
        if at < forward[0]:
            return "other"  # begin_step
        if at == forward[0]:
            return "embedding"
        if at < forward[-1]:
            return "forward"
        if at < backward:
            return "head"
        if at < end:
            return "backward"
        return "embedding" if at < squares[0] else "optimizer"
    return [class_of(at) for at in range(len(names))]
