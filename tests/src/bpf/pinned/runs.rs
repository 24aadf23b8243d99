//! Programs run on frames (BPF_PROG_TEST_RUN).

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};

use super::Pinned;
use crate::bpf::kernel;
use crate::netns::Netns;

/// What a program made of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    /// Its verdict: TC_ACT_SHOT and so on.
    pub verdict: i32,
    /// The frame as it left it.
    pub frame: Vec<u8>,
}

impl Pinned {
    /// Runs a program on a frame, inside a namespace: the one of what comes in by an interface of this number, or the one
    /// of what the node itself sends out there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run(&self, node: &Netns, own: bool, device: u32, frame: &[u8]) -> Result<Ran> {
        let (program, came_by) = if own { (&self.egress, 0) } else { (&self.ingress, device) };
        run(program, node, came_by, device, frame)
    }

    /// Runs the program for what leaves by an interface of this number on a frame, inside a namespace, that has come in by another;
    /// 0: the node itself sends it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run_at_egress(&self, node: &Netns, came_by: u32, device: u32, frame: &[u8]) -> Result<Ran> {
        run(&self.egress, node, came_by, device, frame)
    }

    /// Runs the program for what comes in by an interface of this number so many times on a frame that it leaves as it is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run_often(&self, node: &Netns, device: u32, frame: &[u8], times: u32) -> Result<()> {
        let run = || kernel::test_run(self.ingress.as_fd(), frame, device, device, times);
        node.run(run)?.map(drop).context("the kernel does not run the program")
    }

    /// Runs the program of XDP on a frame that comes in by an interface of this number.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run_at_xdp(&self, node: &Netns, device: u32, frame: &[u8]) -> Result<Ran> {
        let ran = node.run(|| kernel::test_run_xdp(self.uplink.as_fd(), frame, device))?;
        let (verdict, frame) = ran.context("the kernel does not run the program of XDP")?;
        Ok(Ran { verdict, frame })
    }
}

fn run(program: &OwnedFd, node: &Netns, came_by: u32, device: u32, frame: &[u8]) -> Result<Ran> {
    let ran = node.run(|| kernel::test_run(program.as_fd(), frame, device, came_by, 1))?;
    let (verdict, frame) = ran.context("the kernel does not run the program")?;
    Ok(Ran { verdict, frame })
}
