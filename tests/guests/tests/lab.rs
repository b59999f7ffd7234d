//! Lodge on a stock KVM, in the lab: its short form.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use guest_tests::{Image, skipped};

/// The exit status of `cargo xtask lab` where it cannot work.
const SKIPPED: i32 = 77;

#[test]
fn lodge_on_a_stock_kvm() {
    // Builds the image if it is not there.
    if Image::find().is_none() {
        return;
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // It ends with this test, in whatever way that ends, and QEMU ends with it. Where there is no
    // setpriv there is no lab.
    let output = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", env!("CARGO")])
        .args(["run", "--quiet", "--locked", "-p", "xtask", "--", "lab", "--short"])
        .current_dir(workspace)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let output = match output {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            skipped("Lodge on a stock KVM", "there is no setpriv (of util-linux)");
            return;
        }
        output => output.expect("cargo starts"),
    };
    let report = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(SKIPPED) {
        skipped("Lodge on a stock KVM", "something is missing here, as said above");
        return;
    }
    assert!(output.status.success(), "{}:\n{report}", output.status);
    for line in report.lines() {
        guest_tests::note(line);
    }
}
