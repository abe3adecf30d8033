//! The status page in a real browser: at three widths, in each state, its content and its looks.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{fs, path::PathBuf, time::Duration};

use anyhow::ensure;
use etcd_lb_tests::{
    eventually,
    hang::Hung,
    pair::LIMIT,
    stacked::{By, Stacked},
};

/// A phone, a laptop, a wall.
const WIDTHS: [(&str, u32, u32); 3] = [("phone", 390, 1400), ("laptop", 1280, 900), ("wall", 1920, 1000)];

struct Browser {
    shots: PathBuf,
}

impl Browser {
    /// Looks at the page of a node after its script has run for a while: at all widths, dark and light.
    fn look(&self, plane: &Stacked, node: usize, state: &str) -> String {
        let host = plane.host(node);
        let url = format!("http://{}:9479/", host.address());
        let chromium = |args: &[&str]| {
            let profile =
                format!("--user-data-dir={}", plane.lab.dir().join("run").join("chromium").display());
            let mut all = vec![
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
            ];
            all.push(&profile);
            all.extend(args);
            all.push(&url);
            host.output("chromium", &all).unwrap()
        };
        for (name, width, height) in WIDTHS {
            for (scheme, flag) in [
                ("light", "--blink-settings=preferredColorScheme=1"),
                ("dark", "--blink-settings=preferredColorScheme=0"),
            ] {
                let file = self.shots.join(format!("{state}-{name}-{scheme}.png"));
                let shot = format!("--screenshot={}", file.display());
                chromium(&[
                    &shot,
                    &format!("--window-size={width},{height}"),
                    flag,
                    "--virtual-time-budget=2500",
                ]);
                assert!(fs::metadata(&file).unwrap().len() > 5_000, "{}", file.display());
            }
        }
        chromium(&["--dump-dom", "--virtual-time-budget=2500"])
    }
}

fn assert_shows(dom: &str, words: &[&str]) {
    for words in words {
        assert!(dom.contains(words), "{words} is not in {dom}");
    }
    assert!(!dom.contains("class=\"shown\""), "the script has got no answer: {dom}");
}

#[test]
fn the_page_in_each_state() {
    let shots = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/screenshots"));
    fs::create_dir_all(&shots).unwrap();
    let browser = Browser { shots };
    let mut plane = Stacked::start("page", By::EtcdLb, 2);
    std::thread::sleep(Duration::from_secs(2));
    let dom = browser.look(&plane, 0, "active");
    assert_shows(&dom, &[">active<", ">10.0.1.100<", ">healthy<", "leader", "in sync", " p/s"]);
    let dom = browser.look(&plane, 1, "backup");
    assert_shows(&dom, &[">backup<"]);
    plane.cluster.member_mut("n3").kill().unwrap();
    plane.balancer(0).wait_backend("n3", "down", LIMIT).unwrap();
    let dom = browser.look(&plane, 0, "member-down");
    assert_shows(&dom, &[">down<", "connection refused", "n3: healthy → down"]);
    for member in ["n1", "n2"] {
        plane.cluster.member_mut(member).freeze().unwrap();
    }
    eventually(LIMIT, "failing open", || {
        let status = plane.balancer(0).status()?;
        ensure!(status["services"][0]["fail_open"] == true, "{status}");
        Ok(())
    })
    .unwrap();
    let dom = browser.look(&plane, 0, "fail-open");
    assert_shows(&dom, &["failing open"]);
    for member in ["n1", "n2"] {
        plane.cluster.member_mut(member).thaw().unwrap();
    }
    // The thread that keeps the lease hangs, and the agent does not: it can tell.
    let pid = plane.balancer(0).process().unwrap().pid();
    let hung = Hung::thread(pid, "vrrp", 10 * LIMIT).unwrap();
    eventually(LIMIT, "fenced", || {
        let status = plane.balancer(0).status()?;
        ensure!(status["fenced"] == true, "{status}");
        Ok(())
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let dom = browser.look(&plane, 0, "fenced");
    assert_shows(&dom, &[">fenced<", "fenced: the lease is over"]);
    drop(hung);
}
