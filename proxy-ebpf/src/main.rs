//! Kubeferry's BPF programs: entry points only.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod connection;
mod counting;
mod fragments;
mod frame;
mod icmp;
mod known;
mod link;
mod live;
mod log;
mod lookup;
mod maps;
mod opening;
mod others;
mod refuse;
mod route;
mod scheduler;
mod skb;
mod socket;
mod stats;
mod tc;
mod together;
mod work;
mod xdp;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, SockContext, TcContext, XdpContext};

use frame::Frame;
use skb::Skb;
use socket::Socket;

/// What the programs for socket addresses return: the call goes on.
const ALLOWED: i32 = 1;
/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;

#[classifier]
pub fn tc_ingress(context: TcContext) -> i32 {
    let skb = Skb { raw: context.skb.skb };
    tc::ingress(skb, ETHERNET).verdict(tc::at_ingress(&skb))
}

#[classifier]
pub fn tc_egress(context: TcContext) -> i32 {
    let skb = Skb { raw: context.skb.skb };
    tc::egress(skb, ETHERNET).verdict(tc::at_egress(&skb))
}

/// For devices whose packets begin with the IP header.
#[classifier]
pub fn tc_ingress_l3(context: TcContext) -> i32 {
    let skb = Skb { raw: context.skb.skb };
    tc::ingress(skb, 0).verdict(tc::at_ingress(&skb))
}

/// For devices whose packets begin with the IP header.
#[classifier]
pub fn tc_egress_l3(context: TcContext) -> i32 {
    let skb = Skb { raw: context.skb.skb };
    tc::egress(skb, 0).verdict(tc::at_egress(&skb))
}

#[xdp]
pub fn xdp_uplink(context: XdpContext) -> u32 {
    let frame = Frame { raw: context.ctx };
    xdp::uplink(frame).verdict(xdp::at_uplink(&frame))
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    socket::connect(Socket { raw: context.sock_addr, v6: false });
    ALLOWED
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    socket::connect(Socket { raw: context.sock_addr, v6: true });
    ALLOWED
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    socket::send(Socket { raw: context.sock_addr, v6: false });
    ALLOWED
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    socket::send(Socket { raw: context.sock_addr, v6: true });
    ALLOWED
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    socket::reveal(Socket { raw: context.sock_addr, v6: false });
    ALLOWED
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    socket::reveal(Socket { raw: context.sock_addr, v6: true });
    ALLOWED
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    socket::reveal(Socket { raw: context.sock_addr, v6: false });
    ALLOWED
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    socket::reveal(Socket { raw: context.sock_addr, v6: true });
    ALLOWED
}

#[cgroup_sock(sock_release)]
pub fn sock_release(context: SockContext) -> i32 {
    socket::release(context.sock);
    ALLOWED
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
