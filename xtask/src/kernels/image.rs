//! The machine's file system: the test programs, the libraries they need, and an init that runs them.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Packs programs into an initramfs; the last one is the init.
pub(crate) fn initramfs(dir: &Path, programs: &[PathBuf]) -> Result<PathBuf> {
    let root = dir.join("initramfs");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for part in ["tests", "proc", "sys", "tmp", "dev"] {
        fs::create_dir_all(root.join(part))?;
    }
    let (init, tests) = programs.split_last().context("no init")?;
    strip(init, &root.join("init"))?;
    for program in tests {
        strip(program, &root.join("tests").join(program.file_name().context("a program's name")?))?;
    }
    for program in programs {
        for library in libraries(program)? {
            let target = root.join(library.strip_prefix("/").unwrap_or(&library));
            if !target.exists() {
                fs::create_dir_all(target.parent().context("a library's directory")?)?;
                copy(&library, &target)?;
            }
        }
    }
    pack(&root, &dir.join("initramfs.cpio"))
}

/// What `ldd` names: the loader, and the libraries with their places.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// An archive in the format that the kernel unpacks (`newc`, Documentation/driver-api/early-userspace/buffer-format.rst).
fn pack(root: &Path, archive: &Path) -> Result<PathBuf> {
    let mut names = String::new();
    list(root, root, &mut names)?;
    let mut cpio = Command::new("cpio")
        .args(["--quiet", "-o", "-H", "newc", "-R", "0:0"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(File::create(archive).with_context(|| format!("{}", archive.display()))?)
        .spawn()
        .context("cannot run cpio")?;
    cpio.stdin.take().context("stdin was piped")?.write_all(names.as_bytes())?;
    ensure!(cpio.wait()?.success(), "cpio failed");
    Ok(archive.to_path_buf())
}

fn list(root: &Path, dir: &Path, names: &mut String) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        names.push_str(path.strip_prefix(root)?.to_str().context("a name that is not UTF-8")?);
        names.push('\n');
        if path.is_dir() {
            list(root, &path, names)?;
        }
    }
    Ok(())
}

/// A copy without debugging information, which is nine tenths of a program and would lie in the machine's memory twice.
fn strip(program: &Path, to: &Path) -> Result<()> {
    let status = Command::new("strip").arg("--strip-debug").arg("-o").arg(to).arg(program).status();
    let done = status.context("cannot run strip: install the package binutils")?.success();
    ensure!(done, "strip failed on {}", program.display());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}
