# A small guest under Lodge, on this system's KVM, whose exits are looked at between its phases.
i=0
while [ ! -e /dev/vda ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i + 1)); done

# Prints what was counted until now: by Lodge, and by KVM.
sample() {
    echo "sample $1 uptime $(cut -d' ' -f1 /proc/uptime)"
    echo "sample $1 lodge $(/lab/lodge stats small --json | tr -d '\n')"
    for file in /sys/kernel/debug/kvm/*-*/*; do
        [ -f "$file" ] || continue
        value=$(head -n 1 "$file")
        case "$value" in
            '' | *[!0-9]*) ;;
            *) echo "sample $1 kvm:${file##*/} $value" ;;
        esac
    done
}

# What lodge-vmm has resident besides the guest's memory, and what of that is its own alone, in KiB.
memory() {
    awk '/^[0-9a-f]+-/ { own = !/lodge-guest-ram/ }
        /^Rss:/ && own { resident += $2 }
        /^Private_Dirty:/ && own { private += $2 }
        END { print "memory", resident, private }' "/proc/$(pidof lodge-vmm)/smaps"
}

# Waits until the guest says something; fails if it ends without.
await() {
    while ! grep -q "$1" /tmp/console; do
        kill -0 "$guest" 2> /dev/null || return 1
        sleep 0.2
    done
}

: > /tmp/console
/lab/lodge run --accel kvm --name small --memory 256M \
    --kernel /lab/vmlinuz --initrd /lab/small.img --cmdline "console=ttyS0 quiet" \
    --disk /dev/vda,readonly < /dev/null > /tmp/console 2> /tmp/errors &
guest=$!
if await "phase disk" && sample disk-begin && await "phase read" && sample disk-end \
    && await "phase idle" && sleep 5 && sample idle-begin && sleep 20 && sample idle-end; then
    memory
    grep requests /tmp/console
    wait "$guest"
else
    tail -n 20 /tmp/errors /tmp/console
    false
fi
