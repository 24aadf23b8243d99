//! A served cluster whose programs are run on packets one by one (BPF_PROG_TEST_RUN).

use kubeferry_ebpf_common::Flow;
use kubeferry_tests::bpf::Places;
use kubeferry_tests::bpf::pinned::{Pinned, Ran, interface_index};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::served::Served;
use kubeferry_tests::web::Web;

/// The verdict for what goes on.
pub const NEXT: i32 = -1;
/// The verdict for what is dropped.
pub const SHOT: i32 = 2;

pub struct ByPacket {
    served: Served,
    pub pinned: Pinned,
}

impl ByPacket {
    /// With these objects, and flags of `kubeferry run`. No connection is known.
    pub fn start(manifests: &str, flags: &[&str]) -> Self {
        let places = Places::new().unwrap();
        let pins = places.bpffs().to_owned();
        let served = Served::start(Datapath::Ebpf(places), manifests, flags).unwrap();
        let pinned = Pinned::open(&pins).unwrap();
        Self { served, pinned }
    }

    /// Nobody writes to the maps any more; the programs go on.
    pub fn end(&mut self) {
        self.served.end();
    }

    pub fn web(&self) -> &Web {
        &self.served.web
    }

    fn device(&self, host: &str) -> u32 {
        interface_index(self.served.node(), host).unwrap()
    }

    /// It comes in from this host.
    pub fn comes(&self, host: &str, packet: &[u8]) -> Ran {
        self.told(self.pinned.run(self.served.node(), false, self.device(host), &frame(packet)).unwrap())
    }

    /// A frame comes in from this host, to the program of XDP.
    pub fn comes_at_xdp(&self, host: &str, frame: &[u8]) -> Ran {
        self.pinned.run_at_xdp(self.served.node(), self.device(host), frame).unwrap()
    }

    /// It leaves to a host; another has sent it, or the node itself.
    pub fn leaves(&self, host: &str, sender: Option<&str>, packet: &[u8]) -> Ran {
        let came_by = sender.map_or(0, |sender| self.device(sender));
        self.told(self.pinned.run_at_egress(self.served.node(), came_by, self.device(host), &frame(packet)).unwrap())
    }

    /// Without the Ethernet header.
    fn told(&self, ran: Ran) -> Ran {
        Ran { frame: ran.frame[frame(&[]).len()..].to_vec(), ..ran }
    }

    /// All entries of connections with a change of time: they were last used so many units of their clock ago.
    pub fn age(&self, units: u32) {
        for key in self.pinned.flow_keys().unwrap() {
            let older = |flow: &mut Flow| flow.seen = flow.seen.wrapping_sub(units);
            self.pinned.change_flow(&key, older).unwrap();
        }
    }
}

fn frame(packet: &[u8]) -> Vec<u8> {
    let kind = if packet.first().is_some_and(|first| first >> 4 == 6) { [0x86, 0xdd] } else { [8, 0] };
    [&[2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 2, 1][..], &kind[..], packet].concat()
}
