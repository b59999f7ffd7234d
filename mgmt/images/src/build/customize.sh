# Run by mmdebstrap when all packages are installed: makes a machine of them.
# $1 is the guest's root directory.
set -eu
root=$1

echo debian > "$root/etc/hostname"
cat > "$root/etc/hosts" <<'END'
127.0.0.1 localhost
127.0.1.1 debian
::1 localhost ip6-localhost ip6-loopback
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
END

# Every Ethernet card by DHCP and router advertisements, whatever its name; DNS as DHCP says, and the
# domain as well, so that other guests are found by their names alone.
cat > "$root/etc/systemd/network/80-ethernet.network" <<'END'
[Match]
Type=ether

[Network]
DHCP=yes

[DHCPv4]
UseDomains=yes
END
chroot "$root" systemctl --quiet enable systemd-networkd.service
# Nothing in this image waits for the network, so the boot does not either.
chroot "$root" systemctl --quiet disable systemd-networkd-wait-online.service

# Maintenance by the clock: of no use to a machine that lives for minutes, and the first boot
# would start all of it at once.
for timer in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer; do
    if [ -e "$root/lib/systemd/system/$timer" ]; then
        chroot "$root" systemctl --quiet disable "$timer"
    fi
done
chroot "$root" systemctl --quiet disable e2scrub_reap.service

# The passwords are public, so a hash that is cheap to check gives nothing away: yescrypt, the
# default, takes many seconds on an emulated processor.
chroot "$root" useradd --create-home --shell /bin/bash --groups sudo --user-group lodge
printf 'root:lodge\nlodge:lodge\n' | chroot "$root" chpasswd --crypt-method SHA512 --sha-rounds 5000

# Lodge's agent runs as soon as there is a file system to work with, and does not wait for the network.
if [ -e "$root/usr/local/sbin/lodge-agent" ]; then
    chmod 755 "$root/usr/local/sbin/lodge-agent"
    cat > "$root/etc/systemd/system/lodge-agent.service" <<'END'
[Unit]
Description=Lodge's agent, by which the host runs commands and copies files

[Service]
ExecStart=/usr/local/sbin/lodge-agent
Restart=always
RestartSec=1
# What was started by it is not its own: it runs on when the agent is restarted.
KillMode=process

[Install]
WantedBy=basic.target
END
    chroot "$root" systemctl --quiet enable lodge-agent.service
fi

# Folders of the host are mounted where the kernel's command line says.
mkdir -p "$root/etc/systemd/system-generators"
cat > "$root/etc/systemd/system-generators/lodge-folders" <<'END_OF_FILE'
@FOLDERS@
END_OF_FILE
chmod 755 "$root/etc/systemd/system-generators/lodge-folders"

# cloud-init wants a locale that is not in the image unless it is told of one that is, and says that it
# has failed.
if [ -d "$root/etc/cloud/cloud.cfg.d" ]; then
    echo 'locale: C.UTF-8' > "$root/etc/cloud/cloud.cfg.d/90_lodge.cfg"
fi

# They stand above the login prompt (agetty(8)).
mkdir -p "$root/etc/issue.d"
printf 'Log in as root or lodge; the password is lodge.\n\n' > "$root/etc/issue.d/lodge.issue"

# The archives as the guest sees them, and none of the downloader's settings of the host.
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap" "$root/etc/apt/sources.list"
rm -f "$root"/etc/apt/sources.list.d/*
cat > "$root/etc/apt/sources.list.d/debian.sources" <<'END'
@SOURCES@
END

# Or else the first boot would take /usr for just updated and build all caches once more
# (systemd-update-done.service(8)). It has to be the last change here.
touch "$root/etc/.updated" "$root/var/.updated"
