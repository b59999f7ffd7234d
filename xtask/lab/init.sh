#!/bin/busybox sh
# The first program of the lab's system: loads KVM and does the job that the kernel's command line
# names. Its second serial port is the lab's; the first has the kernel's messages.
/bin/busybox mkdir -p /proc /sys /tmp /bin /sbin
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp LODGE_HOME=/tmp/lodge LODGE_VMM=/lab/lodge-vmm
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t debugfs debug /sys/kernel/debug
stty -F /dev/ttyS1 raw -echo
exec < /dev/ttyS1 > /dev/ttyS1 2>&1
for module in $(cat /lab/modules/order); do
    insmod "/lab/modules/$module.ko" || echo "lab: no $module"
done
if [ -e /dev/kvm ]; then
    echo "lab: begin"
    sh "/lab/$LAB_JOB.sh"
    echo "lab: status $?"
else
    echo "lab: no /dev/kvm"
fi
# Until the last line is on its way.
sleep 1
echo o > /proc/sysrq-trigger
sleep 1000
