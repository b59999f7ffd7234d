#!/bin/busybox sh
# The first program of the guest that moves: counts, and notices what gets lost on the way.
/bin/busybox mkdir -p /proc /sys /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
hundredths() { cut -d ' ' -f 1 /proc/uptime | tr -d .; }
count=0
echo 0 > /tmp/count
before=$(hundredths)
while true; do
    [ "$(cat /tmp/count)" = "$count" ] || echo "lost: the file has another count"
    now=$(hundredths)
    [ "$now" -ge "$before" ] || echo "lost: time went from $before to $now"
    [ "$now" -lt $((before + 6000)) ] || echo "lost: time jumped from $before to $now"
    before=$now
    count=$((count + 1))
    echo "$count" > /tmp/count
    echo "count $count of $(dmesg | grep -c -E 'Call Trace|unchecked MSR|unstable')"
    sleep 1
done
