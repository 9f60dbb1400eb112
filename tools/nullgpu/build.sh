#!/usr/bin/env bash
# build.sh FOLDER: builds the null GPU into FOLDER and writes FOLDER/env.sh.
# Needs gcc, g++ and CUDA 13's headers, in $CUDA_HOME/include or /usr/local/cuda/include.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
include=${CUDA_HOME:-/usr/local/cuda}/include  # the wheels' own headers are not complete
[ -f "$include/cuda_runtime_api.h" ] || {
  echo "no CUDA 13 headers in $include: install NVIDIA's toolkit, or set CUDA_HOME" >&2
  exit 1
}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
mkdir -p "$out/lib"
flags=(-std=c++17 -O1 -fPIC -I"$include" -Wall -Wno-attributes -Wno-builtin-declaration-mismatch)
while read -r name; do echo "int $name() { return 0; }"; done < "$here/stubs.txt" > "$build/stubs.c"
gcc -w -fPIC -fno-builtin -c "$build/stubs.c" -o "$build/stubs.o"
for part in runtime libraries; do
  g++ "${flags[@]}" -c "$here/$part.cpp" -o "$build/$part.o"
done
# Renamed into place: a process that has them loaded keeps what it has.
g++ -shared -o "$build/libnullgpu.so" "$build"/*.o -ldl
g++ "${flags[@]}" -shared -Wl,-soname,libcuda.so.1 -o "$build/libcuda.so.1" "$here/driver.cpp"
mv "$build/libnullgpu.so" "$out/"
mv "$build/libcuda.so.1" "$out/lib/"
ln -sf libcuda.so.1 "$out/lib/libcuda.so"
cat > "$out/env.sh" <<END
export LD_PRELOAD=$out/libnullgpu.so LD_LIBRARY_PATH=$out/lib TRITON_LIBCUDA_PATH=$out/lib
export TORCHINDUCTOR_CACHE_DIR=$out/inductor TRITON_CACHE_DIR=$out/triton
export TORCHINDUCTOR_COMPILE_THREADS=1
END
echo "built; source $out/env.sh in a subshell that is to see a GPU"
