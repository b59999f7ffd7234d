# A guest that counts goes on under the other accelerator, both ways and there and back.
said() { /lab/lodge logs mover 2> /dev/null | tr -d '\r'; }
counted() { said | sed -n 's/^count \([0-9]*\) .*/\1/p' | tail -n 1; }

# Waits until the guest has counted to $1.
await() {
    for _ in $(seq 9000); do
        count=$(counted)
        [ "${count:-0}" -ge "$1" ] && return 0
        sleep 0.2
    done
    echo "the guest does not count to $1"
    said | tail -n 20
    return 1
}

runs_on() { /lab/lodge stats mover --json | grep -q "\"accelerator\": *\"$1\""; }

start() {
    /lab/lodge run -d --accel "$1" --cpu "$2" --name mover --memory 192M --net none \
        --kernel /lab/vmlinuz --initrd /lab/counter.img --cmdline "console=ttyS0 quiet" \
        && await 3 && runs_on "$1"
}

# Has it go on under $1, and count further.
move() {
    /lab/lodge snapshot create mover here || return 1
    last=$(counted)
    /lab/lodge kill mover && /lab/lodge snapshot restore mover here --accel "$1" || return 1
    runs_on "$1" && await $((last + 5)) && /lab/lodge snapshot rm mover here
}

whole() {
    if said | grep -E '^lost' || said | grep -E '^count [0-9]* of [^0]'; then return 1; fi
    /lab/lodge rm --force mover
}

# Something that only KVM has for guests of this model.
refused() {
    /lab/lodge snapshot create mover here && /lab/lodge kill mover || return 1
    if /lab/lodge snapshot restore mover here --accel soft 2> /tmp/refusal; then return 1; fi
    grep "CPUID leaf" /tmp/refusal && /lab/lodge rm --force mover
}

try() {
    echo "move $*"
    if ! "$@"; then
        echo "failed: $*"
        exit 1
    fi
}

try start soft x86-64
try move kvm
try move soft
try whole
for model in x86-64 x86-64-v2; do
    try start kvm "$model"
    try move soft
    try move kvm
    try whole
done
try start kvm host
try move kvm
try refused
