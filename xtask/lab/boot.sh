# Debian under Lodge, on this system's KVM. Its disk is this system's.
i=0
while [ ! -e /dev/vda ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i + 1)); done
exec /lab/lodge run --accel kvm --name debian --memory 768M --net none \
    --kernel /lab/vmlinuz --initrd /lab/initrd.img \
    --cmdline "root=/dev/vda rw console=ttyS0 systemd.default_timeout_start_sec=1200" \
    --disk /dev/vda,overlay=/tmp/overlay.qcow2
