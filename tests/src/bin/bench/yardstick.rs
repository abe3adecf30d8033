//! A yardstick of the way of packets: an XDP program that knows one client and one member beforehand, looks nothing up and
//! remembers nothing. No balancer in XDP does less; what it takes is the driver's, the kernel's and the hosts'.

use std::{fs, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::Array,
    programs::{Xdp, XdpMode},
};
use etcd_lb_tests::{Host, Lab};
use lb_common::{addr::Mac, bench::StaticNat, maps::Interface};
use nix::net::if_::if_nametoindex;

use crate::{peers::Behind, site::MTU};

/// The program.
const PROGRAM: &str = "bench_nat";
/// Its map.
const KNOWN: &str = "bench_static_nat";

/// Attaches it to a host's interface, on which it stays while what is returned lives.
pub fn attach(lab: &Lab, host: &Host, vip: Ipv4Addr, behind: &Behind<'_>) -> Result<Ebpf> {
    let path = behind.object.context("the yardstick needs the object that `cargo xtask bench` builds")?;
    let object = fs::read(path).with_context(|| format!("{}", path.display()))?;
    let mac_of = |name| -> Result<Mac> { Ok(Mac::new(lab.host(name).mac()?)) };
    let known = StaticNat {
        vip: vip.into(),
        client: lab.host("client-1").address().into(),
        member: behind.members[0].into(),
        interface: Interface {
            ifindex: host.run(|| if_nametoindex(host.interface()))?,
            mtu: MTU,
            mac: Mac::new(host.mac()?),
            flags: 0,
        },
        client_mac: mac_of("client-1")?,
        member_mac: mac_of("etcd-1")?,
    };
    let mut ebpf = EbpfLoader::new().load(&object)?;
    let mut map: Array<_, StaticNat> = ebpf.map_mut(KNOWN).context("no such map")?.try_into()?;
    map.set(0, known, 0)?;
    let program: &mut Xdp = ebpf.program_mut(PROGRAM).context("no such program")?.try_into()?;
    program.load()?;
    host.run(|| program.attach(host.interface(), XdpMode::Driver))?;
    Ok(ebpf)
}
