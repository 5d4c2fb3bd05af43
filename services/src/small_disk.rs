//! A file system that is really small, so that it becomes really full.
//!
//! The rule: it is mounted where only the test sees it, so nothing is left behind however the test
//! ends; where the kernel permits no mount, that is a failure that says what is needed.

use std::{
    env,
    path::PathBuf,
    process::{Command, Output},
};

/// Where the small file system of this process is.
const DIRECTORY: &str = "TESTS_SMALL_DISK";

/// As root, and as anybody else where users may have namespaces of their own.
const WAYS: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];

/// `$1`: its size, `$2`: where; and then what runs on it. It leaves with [`NO_MOUNT`] if there is
/// none.
const MOUNT_AND_RUN: &str = "mount -t tmpfs -o size=\"$1\" tidings \"$2\" || exit 120\n\
                             shift 2\n\
                             exec \"$@\"";
const NO_MOUNT: i32 = 120;

/// Runs a test of this executable that is ignored otherwise, in a mount namespace of its own with an
/// empty file system of so many bytes. The test asks [`small_disk`] where that is.
///
/// # Panics
/// If the test fails or is not there, with all that it printed; and if there can be no such file
/// system, with what is needed.
pub fn on_a_small_disk(test: &str, bytes: u64) {
    let directory = tempfile::tempdir().expect("a directory to mount it at");
    let this = env::current_exe().expect("the path of this test");
    let mut refused = String::new();
    for way in WAYS {
        let ran = Command::new("unshare")
            .args(way)
            .args(["--propagation", "private", "sh", "-c", MOUNT_AND_RUN, "sh"])
            .arg(bytes.to_string())
            .arg(directory.path())
            .arg(&this)
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .output()
            .expect("`unshare` of util-linux");
        if was_run(&ran) {
            return judge(test, &ran);
        }
        refused += &text(&ran.stderr);
    }
    panic!(
        "this test needs a small file system of its own, and may not mount one:\n{refused}Run it as \
         root with CAP_SYS_ADMIN (a container: `--cap-add SYS_ADMIN --security-opt \
         apparmor=unconfined`), or let users have namespaces (`sysctl user.max_user_namespaces`, \
         `kernel.unprivileged_userns_clone=1`, `kernel.apparmor_restrict_unprivileged_userns=0`)"
    );
}

/// Where the file system is that [`on_a_small_disk`] made for this test.
///
/// # Panics
/// If it did not start the test.
#[must_use]
pub fn small_disk() -> PathBuf {
    env::var_os(DIRECTORY).expect("started by `on_a_small_disk`").into()
}

/// Whether the test ran, however it ended: neither `unshare` nor `mount` refused.
fn was_run(ran: &Output) -> bool {
    ran.status.code() != Some(NO_MOUNT) && text(&ran.stdout).contains("running ")
}

fn judge(test: &str, ran: &Output) {
    let (said, complained) = (text(&ran.stdout), text(&ran.stderr));
    // A test that is not there is none that passed.
    let passed = ran.status.success() && said.contains("test result: ok. 1 passed");
    assert!(passed, "{test}: {}\n{said}\n{complained}", ran.status);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
