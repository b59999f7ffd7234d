//! Debian's cloud-init, which does what Lodge's seed says. An image that has it is built for that, which takes
//! minutes and Debian's archive: so only if it is asked for.

use guest_tests::{Lab, skipped};

/// Asks for it.
const WANTED: &str = "LODGE_TEST_CLOUD_INIT";

const USER_DATA: &str = "#cloud-config
write_files:
- path: /etc/made
  content: by cloud-init
runcmd:
- [sh, -c, 'hostname > /root/ran']
";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINRod0Ubf5H2kWb7Fay49ZH4FcPA2pNln5zLo+N3mS8Q me@here";

#[test]
fn debian_does_what_the_seed_says() {
    if std::env::var_os(WANTED).is_none() {
        return skipped("cloud-init", &format!("it builds an image: {WANTED}=1 has it run"));
    }
    let lab = Lab::empty();
    if !lab.has_agent_program() {
        return skipped(
            "cloud-init",
            "there is no lodge-agent beside lodge: `make build` makes it",
        );
    }
    lab.say(&["image", "build", "debian:12", "--include", "cloud-init"]);
    let data = lab.file("setup.yaml", USER_DATA).display().to_string();
    let key = lab.file("key.pub", KEY).display().to_string();
    let run = ["run", "-d", "--wait", "debian:12", "--name", "web", "--hostname", "seeded"];
    lab.say(&[&run[..], &["--user-data", &data, "--ssh-key", &key]].concat());
    let sh = |script: &str| lab.say(&["exec", "web", "--", "sh", "-ec", script]);
    // It fails if anything that cloud-init does has failed.
    sh("cloud-init status --wait --long");
    assert_eq!(
        sh("cat /etc/made; echo; cat /root/ran; hostname"),
        "by cloud-init\nseeded\nseeded\n"
    );
    assert_eq!(sh("cat /home/debian/.ssh/authorized_keys").trim(), KEY);
    let instance = sh("cat /run/cloud-init/.instance-id");
    // What was done once is not done again.
    sh("rm /root/ran");
    lab.say(&["restart", "web"]);
    sh("cloud-init status --wait");
    assert_eq!(sh("cat /run/cloud-init/.instance-id; test ! -e /root/ran"), instance);
    lab.say(&["rm", "--force", "web"]);
    lab.close();
}
