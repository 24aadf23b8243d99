//! Packets with a sum of all their bytes beside them, as network cards give it (CHECKSUM_COMPLETE). Here it is the kernel that sums what
//! has come through a tunnel.

use kubeferry_tests::bpf::pinned::interface_index;
use kubeferry_tests::client::{datagrams, until};
use kubeferry_tests::exchange::echoes;
use kubeferry_tests::site::{Site, VIPS, at};
use kubeferry_tests::sockets::without_offloads;
use kubeferry_tests::whole_sums::{BYTES, Probe};

/// The header of UDP, and before it that of IPv4 or of IPv6.
const HEADERS: [usize; 2] = [20 + 8, 40 + 8];

#[test]
fn a_whole_sum_is_right_after_an_address_has_changed() {
    let site = Site::start(&["1"]).unwrap();
    let tunnel = |local: &str, remote: &str, last: u8| {
        let device = format!("link add tunnel type vxlan id 7 local {local} remote {remote} dstport 4789 udpcsum");
        let addresses = [format!("192.168.77.{last}/24"), format!("fd00:77::{last}/64")];
        let addresses = addresses.map(|address| {
            format!("address add {address} dev tunnel{}", if address.contains('.') { "" } else { " nodad" })
        });
        let [four, six] = addresses;
        [device, four, six, "link set tunnel up".to_owned()]
    };
    site.node().ip(&tunnel("192.0.2.1", "10.244.1.7", 1)).unwrap();
    site.client().ip(&tunnel("10.244.1.7", "192.0.2.1", 9)).unwrap();
    let ways = ["route add 10.96.0.10 via 192.168.77.1", "route add fd00:10:96::10 via fd00:77::1"];
    site.client().ip(&ways).unwrap();
    // What a device is to finish is not summed.
    without_offloads(site.client(), "tunnel").unwrap();
    without_offloads(site.client(), "eth0").unwrap();
    let clients = VIPS.map(|vip| datagrams(site.client(), at(vip, 81)).unwrap());
    for (client, headers) in clients.iter().zip(HEADERS) {
        until("an answer through the tunnel", || echoes(client, BYTES - headers).unwrap().then_some(())).unwrap();
    }
    // Behind the programs, which are there by now.
    let index = interface_index(site.node(), "tunnel").unwrap();
    let probe = site.node().run(|| Probe::attach(index)).unwrap().unwrap();
    for ((client, headers), vip) in clients.iter().zip(HEADERS).zip(VIPS) {
        assert_eq!(probe.take().unwrap(), None);
        assert!(echoes(client, BYTES - headers).unwrap(), "{vip}");
        let sums = probe.take().unwrap().unwrap_or_else(|| panic!("{vip}: the packet had no sum of all its bytes"));
        assert_eq!(sums.told, sums.real, "{vip}");
    }
}
