//! A kernel of another release of Debian, downloaded and unpacked without touching the machine's own package lists.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

/// The package that depends on the release's newest kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// A release, as apt sees it through a sources file of its own.
pub(crate) struct Suite {
    dir: PathBuf,
    sources: PathBuf,
}

/// A kernel to boot.
pub(crate) struct Kernel {
    /// As `uname -r` prints it.
    pub(crate) release: String,
    pub(crate) image: PathBuf,
}

impl Suite {
    /// Derives the sources file from the machine's own, so that the archive is the one that this machine uses.
    pub(crate) fn new(name: &str, dir: &Path) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part)).with_context(|| format!("making {}", dir.display()))?;
        }
        let sources = dir.join("suite.sources");
        let own = own_stanza()?;
        let derived: Vec<String> = own
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| if line.starts_with("Suites:") { format!("Suites: {name}") } else { line.to_owned() })
            .collect();
        fs::write(&sources, derived.join("\n") + "\n")?;
        Ok(Self { dir: dir.to_path_buf(), sources })
    }

    /// Downloads and unpacks the kernel, unless that was done already.
    pub(crate) fn kernel(&self) -> Result<Kernel> {
        if let Some(kernel) = self.unpacked()? {
            return Ok(kernel);
        }
        self.apt("apt-get", &["update", "-qq"])?;
        let image = self.named_by(META_PACKAGE, "linux-image-")?;
        self.unpack(&image)?;
        if let Some(kernel) = self.unpacked()? {
            return Ok(kernel);
        }
        // Since Linux 7 that package brings the boot loader's hooks, and another one the kernel itself.
        self.unpack(&self.named_by(&image, "linux-binary-")?)?;
        self.unpacked()?.context("the packages hold no kernel image")
    }

    /// The package for virtual machines that another one depends on.
    fn named_by(&self, package: &str, prefix: &str) -> Result<String> {
        let depends = self.apt("apt-cache", &["depends", package])?;
        let mut named = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let found = named.find(|name| name.starts_with(prefix) && name.ends_with("-cloud-amd64"));
        Ok(found.with_context(|| format!("{package} names no {prefix}*: {depends}"))?.to_owned())
    }

    fn unpack(&self, package: &str) -> Result<()> {
        self.apt("apt-get", &["download", "-qq", package])?;
        let archive = find(&self.dir, |name| name.starts_with(package) && name.ends_with(".deb"))?
            .with_context(|| format!("{package} was not downloaded"))?;
        let mut dpkg = Command::new("dpkg");
        dpkg.arg("-x").arg(&archive).arg(self.dir.join("root"));
        ensure!(dpkg.status()?.success(), "cannot unpack {}", archive.display());
        Ok(())
    }

    /// The kernel is at `/boot/vmlinuz-RELEASE`, since Linux 7 at `/usr/lib/modules/RELEASE/vmlinuz`.
    fn unpacked(&self) -> Result<Option<Kernel>> {
        let root = self.dir.join("root");
        let boot = root.join("boot");
        if boot.is_dir()
            && let Some(image) = find(&boot, |name| name.starts_with("vmlinuz-"))?
        {
            let name = image.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let release = name.trim_start_matches("vmlinuz-").to_owned();
            return Ok(Some(Kernel { release, image }));
        }
        let modules = root.join("usr/lib/modules");
        if !modules.is_dir() {
            return Ok(None);
        }
        let found = find(&modules, |release| modules.join(release).join("vmlinuz").is_file())?;
        Ok(found.and_then(|dir| {
            let release = dir.file_name()?.to_str()?.to_owned();
            Some(Kernel { release, image: dir.join("vmlinuz") })
        }))
    }

    fn apt(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.current_dir(&self.dir);
        for (option, value) in [
            ("Dir::Etc::sourcelist", self.sources.as_path()),
            ("Dir::Etc::sourceparts", Path::new("/dev/null")),
            ("Dir::State::Lists", &self.dir.join("lists")),
            ("Dir::Cache", &self.dir.join("cache")),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        let output =
            command.args(args).output().with_context(|| format!("cannot run {program}: is this Debian?"))?;
        if !output.status.success() {
            bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The machine's own stanza for its release's main archive (sources.list(5), deb822 style).
fn own_stanza() -> Result<String> {
    let os = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let codename =
        os.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).context("no VERSION_CODENAME")?;
    let dir = Path::new("/etc/apt/sources.list.d");
    for entry in fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|end| end != "sources") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        if let Some(found) = text.split("\n\n").find(|stanza| names_suite(stanza, codename)) {
            return Ok(found.to_owned());
        }
    }
    let list = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    list.lines().find_map(|line| one_line(line, codename)).with_context(|| {
        format!("neither {} nor /etc/apt/sources.list names the suite {codename}", dir.display())
    })
}

fn names_suite(stanza: &str, codename: &str) -> bool {
    let suites = stanza.lines().find_map(|line| line.strip_prefix("Suites:"));
    suites.is_some_and(|suites| suites.split_whitespace().any(|suite| suite == codename))
}

/// A line of the older style, `deb [OPTIONS] URI SUITE COMPONENT…`, as a stanza.
fn one_line(line: &str, codename: &str) -> Option<String> {
    let mut words = line
        .split_whitespace()
        .skip_while(|word| *word == "deb" || word.starts_with('[') || word.ends_with(']'));
    let is_deb = line.trim_start().starts_with("deb ");
    let (uri, suite) = (words.next()?, words.next()?);
    (is_deb && suite == codename)
        .then(|| format!("Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n"))
}

fn find(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&wanted) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_of_sources_are_read() {
        let stanza = "Types: deb\nURIs: http://archive.example/debian\nSuites: bookworm bookworm-updates\nComponents: main";
        assert!(names_suite(stanza, "bookworm"));
        assert!(!names_suite(stanza, "sid"));
        let line = "deb [signed-by=/k] http://archive.example/debian bookworm main";
        assert!(
            one_line(line, "bookworm").is_some_and(|s| s.contains("URIs: http://archive.example/debian\n"))
        );
        assert!(one_line("# deb http://archive.example/debian bookworm main", "bookworm").is_none());
    }
}
