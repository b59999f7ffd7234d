#!/bin/busybox sh
# The first program of the small guest: reads from its disk, then does nothing, then ends.
/bin/busybox mkdir -p /proc /sys
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module.ko"; done
while [ ! -e /dev/vda ]; do sleep 0.1; done
# Nothing is printed while something is measured: each byte is an exit.
requests() { awk '{ print $1 }' /sys/block/vda/stat; }
before=$(requests)
echo "phase disk"
sleep 5
dd if=/dev/vda of=/dev/null bs=4k count=2000 iflag=direct 2> /dev/null
after=$(requests)
echo "phase read"
sleep 5
echo "requests $((after - before))"
echo "phase idle"
sleep 40
echo o > /proc/sysrq-trigger
sleep 1000
