//! Kubeferry's BPF programs: entry points only.
#![no_std]
#![no_main]

mod connection;
mod lookup;
mod maps;
mod packet;
mod refuse;
mod rewrite;
mod route;
mod stats;
mod tc;
mod work;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use packet::Skb;

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;

#[classifier]
pub fn tc_ingress(context: TcContext) -> i32 {
    tc::ingress(Skb { raw: context.skb.skb }, ETHERNET).verdict()
}

#[classifier]
pub fn tc_egress(context: TcContext) -> i32 {
    tc::egress(Skb { raw: context.skb.skb }, ETHERNET).verdict()
}

/// For devices whose packets begin with the IP header.
#[classifier]
pub fn tc_ingress_l3(context: TcContext) -> i32 {
    tc::ingress(Skb { raw: context.skb.skb }, 0).verdict()
}

/// For devices whose packets begin with the IP header.
#[classifier]
pub fn tc_egress_l3(context: TcContext) -> i32 {
    tc::egress(Skb { raw: context.skb.skb }, 0).verdict()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
