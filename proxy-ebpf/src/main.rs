//! Kubeferry's BPF programs: entry points only.
#![no_std]
#![no_main]

mod maps;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

#[classifier]
pub fn ingress(_context: TcContext) -> i32 {
    match unsafe {
        maps::FRONTENDS.get(kubeferry_ebpf_common::FrontendKey {
            address: kubeferry_ebpf_common::Address::v4(1),
            port: 1,
            protocol: 6,
            kind: 0,
        })
    } {
        Some(f) => f.flags as i32,
        None => -1,
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
