//! A program at TC that compares what a network card has said of a packet's sum (CHECKSUM_COMPLETE) with what it comes to. The kernel
//! itself only mends such a sum where it is wrong, and says so once.
//!
//! Why `unsafe`: as in `xdp.rs`.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use kubeferry::backend::ebpf::bpf::{create_array, create_link};
use kubeferry::backend::ebpf::table::Table;

use crate::xdp::load_program;

const PROG_TYPE_SCHED_CLS: u32 = 3;
/// BPF_TCX_INGRESS.
const INGRESS: u32 = 46;
/// Bytes of the packets that are looked at, from the IP header on.
pub const BYTES: usize = 80;
const ETHERNET: i32 = 14;

// Opcodes of include/uapi/linux/bpf.h, put together.
const MOVE: u8 = 0xb7;
const COPY: u8 = 0xbf;
const ADD: u8 = 0x07;
const ADD_REGISTER: u8 = 0x0f;
const AND: u8 = 0x57;
const SHIFT_LEFT: u8 = 0x67;
const SHIFT_RIGHT: u8 = 0x77;
const OR_REGISTER: u8 = 0x4f;
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x63;
const LOAD_NUMBER: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const UNLESS_EQUAL: u8 = 0x55;
const IF_EQUAL: u8 = 0x15;
const IF_NEGATIVE: u8 = 0xc5;

// Helpers.
const MAP_LOOKUP_ELEM: i32 = 1;
const SKB_LOAD_BYTES: i32 = 26;
const CSUM_DIFF: i32 = 28;
const CSUM_UPDATE: i32 = 40;

/// What is known of the last packet of [`BYTES`] bytes that had such a sum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sums {
    /// That of the card.
    pub told: u16,
    /// That of its bytes.
    pub real: u16,
}

/// The program, behind those that are at the interface already. It goes with the value.
#[derive(Debug)]
pub struct Probe {
    seen: Table<u32, u32>,
    _link: OwnedFd,
}

impl Probe {
    /// Attaches it where packets come in by an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// The right is missing, or the kernel is older than TCX (6.6).
    pub fn attach(ifindex: u32) -> Result<Self> {
        let map = create_array(None).context("cannot make a map: it needs CAP_BPF")?;
        let program = load_program(PROG_TYPE_SCHED_CLS, 0, &instructions(map.as_raw_fd()))
            .context("the verifier refuses the program that compares sums")?;
        let link = create_link(program.as_fd(), ifindex, INGRESS, 0).context("it cannot be attached by TCX")?;
        Ok(Self { seen: Table::new(map)?, _link: link })
    }

    /// The sums of the last packet that has come since this was asked for.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn take(&self) -> Result<Option<Sums>> {
        let seen = self.seen.get(&0)?.filter(|seen| *seen != 0);
        self.seen.put(&[(0, 0)])?;
        // 0 and 0xffff are the same.
        let plain = |sum: u32| if sum == 0xffff { 0 } else { sum as u16 };
        Ok(seen.map(|seen| Sums { told: plain(seen >> 16), real: plain(seen & 0xffff) }))
    }
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    let number = u64::from(number.cast_unsigned()) << 32;
    number | u64::from(offset.cast_unsigned()) << 16 | u64::from(from) << 12 | u64::from(to) << 8 | u64::from(code)
}

/// r6: the packet, r7: the sum told, r8: the real one.
fn instructions(map: i32) -> Vec<u64> {
    let room = -(BYTES as i32);
    let key = (room - 4) as i16;
    let folded = |register: u8| {
        let halves = [
            instruction(COPY, 1, register, 0, 0),
            instruction(SHIFT_RIGHT, 1, 0, 0, 16),
            instruction(AND, register, 0, 0, 0xffff),
            instruction(ADD_REGISTER, register, 1, 0, 0),
        ];
        halves.repeat(2)
    };
    let mut body = vec![
        instruction(COPY, 6, 1, 0, 0),
        instruction(MOVE, 2, 0, 0, 0),
        instruction(CALL, 0, 0, 0, CSUM_UPDATE),
        // There is no such sum.
        instruction(IF_NEGATIVE, 0, 0, 0, 0),
        instruction(COPY, 7, 0, 0, 0),
        instruction(COPY, 1, 6, 0, 0),
        instruction(MOVE, 2, 0, 0, ETHERNET),
        instruction(COPY, 3, 10, 0, 0),
        instruction(ADD, 3, 0, 0, room),
        instruction(MOVE, 4, 0, 0, BYTES as i32),
        instruction(CALL, 0, 0, 0, SKB_LOAD_BYTES),
        instruction(UNLESS_EQUAL, 0, 0, 0, 0),
        instruction(MOVE, 1, 0, 0, 0),
        instruction(MOVE, 2, 0, 0, 0),
        instruction(COPY, 3, 10, 0, 0),
        instruction(ADD, 3, 0, 0, room),
        instruction(MOVE, 4, 0, 0, BYTES as i32),
        instruction(MOVE, 5, 0, 0, 0),
        instruction(CALL, 0, 0, 0, CSUM_DIFF),
        instruction(COPY, 8, 0, 0, 0),
    ];
    body.extend(folded(7));
    body.extend(folded(8));
    body.extend([
        instruction(SHIFT_LEFT, 7, 0, 0, 16),
        instruction(OR_REGISTER, 7, 8, 0, 0),
        instruction(MOVE, 1, 0, 0, 0),
        instruction(STORE_WORD, 10, 1, key, 0),
        // Of a map's descriptor.
        instruction(LOAD_NUMBER, 1, 1, 0, map),
        instruction(0, 0, 0, 0, 0),
        instruction(COPY, 2, 10, 0, 0),
        instruction(ADD, 2, 0, 0, key.into()),
        instruction(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        instruction(IF_EQUAL, 0, 0, 0, 0),
        instruction(STORE_WORD, 0, 7, 0, 0),
    ]);
    // Packets of another length.
    let length = [instruction(LOAD_WORD, 2, 1, 0, 0), instruction(UNLESS_EQUAL, 2, 0, 0, ETHERNET + BYTES as i32)];
    body.splice(0..0, length);
    // What jumps, jumps to the end.
    let end = body.len();
    for (at, instruction) in body.iter_mut().enumerate() {
        if matches!(*instruction as u8, UNLESS_EQUAL | IF_EQUAL | IF_NEGATIVE) {
            *instruction |= ((end - at - 1) as u64) << 16;
        }
    }
    // TCX_NEXT.
    body.extend([instruction(MOVE, 0, 0, 0, -1), instruction(EXIT, 0, 0, 0, 0)]);
    body
}
