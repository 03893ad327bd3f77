//! A file system of a test's own, small enough to be filled, in memory; unmounted when dropped.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{lake, skipped};

/// A small file system.
pub struct Disk {
    path: PathBuf,
    /// Where it is, if that is a folder of its own.
    _folder: Option<TempDir>,
}

impl Disk {
    /// One of `bytes` in a folder of its own; `None`, with the reason told, where this process may not mount.
    pub fn mount(bytes: u64) -> Option<Self> {
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path().to_owned();
        mounted(&path, bytes).then_some(Disk { path, _folder: Some(folder) })
    }

    /// One of `bytes` over the folder `path`.
    pub fn mount_at(path: &Path, bytes: u64) -> Option<Self> {
        mounted(path, bytes).then(|| Disk { path: path.to_owned(), _folder: None })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that its files take up.
    pub fn used(&self) -> u64 {
        lake::files(&self.path, "").iter().filter_map(|path| Some(path.metadata().ok()?.blocks() * 512)).sum()
    }

    /// Makes it larger.
    pub fn grow(&self, bytes: u64) {
        mount(&["-o", &format!("remount,size={bytes}")], &self.path).expect("what was mounted can be mounted again");
    }

    /// Refuses all writes from now on, also those of root.
    pub fn make_read_only(&self) {
        mount(&["-o", "remount,ro"], &self.path).expect("what was mounted can be mounted again");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a failed test may still have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn mounted(path: &Path, bytes: u64) -> bool {
    let mounted = mount(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"], path);
    if let Err(why) = &mounted {
        skipped("a disk of a test's own", why);
    }
    mounted.is_ok()
}

fn mount(args: &[&str], at: &Path) -> Result<(), String> {
    let output = Command::new("mount").args(args).arg(at).output().map_err(|error| format!("mount: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}
