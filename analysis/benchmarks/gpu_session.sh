#!/usr/bin/env bash
# What a GPU alone can say, in six minutes: parts in the order of their value, each a process of its own that is ended
# after its seconds and has written what it found by then. What does not fit into the total is left out and named.
#
#   analysis/benchmarks/gpu_session.sh --out DIR                # all parts
#   analysis/benchmarks/gpu_session.sh --out DIR --only step18  # one of them; may be repeated
#   analysis/benchmarks/gpu_session.sh --out DIR --seconds 30   # of each part at most; 60 by default
#   analysis/benchmarks/gpu_session.sh --out DIR --total 600    # of all parts at most; 345 by default
#   analysis/benchmarks/gpu_session.sh --out DIR --tiny         # the control flow of every part, on any machine
#   analysis/benchmarks/gpu_session.sh --out DIR --wheels DIR   # packages that the machine lacks, installed apart
#
# PYTHON names the interpreter (python3). No package of JAX or PyTorch is installed or replaced.
set -uo pipefail
cd "$(dirname "$0")/../.."
SECONDS=0

out="" seconds=60 total=345 tiny="" wheels="" only=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out="$2"; shift 2 ;;
    --only) only+=("$2"); shift 2 ;;
    --seconds) seconds="$2"; shift 2 ;;
    --total) total="$2"; shift 2 ;;
    --tiny) tiny="--tiny"; shift ;;
    --wheels) wheels="$2"; shift 2 ;;
    *) echo "gpu_session.sh: no option $1; the head of the script lists them" >&2; exit 2 ;;
  esac
done
if [ -z "$out" ]; then
  echo "gpu_session.sh: --out DIR is missing; the records go there" >&2
  exit 2
fi
mkdir -p "$out" || exit 1

PYTHON="${PYTHON:-python3}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "$wheels" ]; then
  site="$(mktemp -d)"
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl || exit 1
  export PYTHONPATH="$site:$PYTHONPATH"
fi
# As `rfjax` itself sets it before it starts; only the CPU has the difference.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

parts="analysis/benchmarks/gpu_parts.py"
if [ ${#only[@]} -eq 0 ]; then
  mapfile -t only < <("$PYTHON" "$parts" --list)
fi
for part in "${only[@]}"; do
  left=$((total - SECONDS))
  if [ "$left" -lt 15 ]; then
    echo "$part: left out, since $left s of $total are left" >&2
    continue
  fi
  given=$((left < seconds ? left : seconds))
  # A part stops by itself before its time; the signal is for one that hangs in a compiler.
  timeout --kill-after=5 "$((given + 5))" "$PYTHON" "$parts" "$part" --out "$out" --seconds "$given" $tiny
  status=$?
  [ $status -eq 0 ] || echo "$part: ended with status $status after $SECONDS s in all" >&2
done
"$PYTHON" "$parts" --summary --out "$out"
echo "all parts: $SECONDS s"
