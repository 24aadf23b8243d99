//! A virtual machine under software emulation, from its start to its end.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::{interrupt, step};

/// What the machine's first process says of itself, on lines of their own: see init.sh.
const MARK: &str = "kubeferry-vm: ";
/// How long the machine may take to switch off.
const SWITCH_OFF: Duration = Duration::from_secs(20);

/// Boots a kernel and gives the exit code of the command that init.sh runs. `line` gets each line of its output, as it comes;
/// the kernel's messages go to the file `console`.
///
/// # Errors
/// qemu does not start, the machine ends before the command does, or the command is not over after `patience`: the message
/// has the last of the kernel's messages.
pub fn boot(
    image: &Path,
    initramfs: &Path,
    console: &Path,
    patience: Duration,
    line: &mut dyn FnMut(&str),
) -> anyhow::Result<i32> {
    let deadline = Instant::now() + patience;
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-machine", "accel=tcg", "-cpu", "max", "-smp", "2", "-m", "4G", "-nic", "none"]);
    command.args(["-display", "none", "-monitor", "none", "-no-reboot", "-kernel"]).arg(image);
    command.arg("-initrd").arg(initramfs);
    // A panic is a reboot at once, which is qemu's end. TCG has the instruction rdrand: nobody has to wait for entropy.
    command.args(["-append", "console=ttyS0 panic=-1 random.trust_cpu=on net.ifnames=0 mitigations=off"]);
    command.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut machine = Machine(command.spawn().context("cannot start qemu-system-x86_64")?);
    let output = machine.0.stdout.take().context("qemu has no output")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            if sender.send(String::from_utf8_lossy(&bytes).trim_end().to_owned()).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    let messages = || {
        let text = fs::read(console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    };
    let code = loop {
        interrupt::check()?;
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(text) => match text.strip_prefix(MARK) {
                Some(said) => match said.strip_prefix("exit ") {
                    Some(code) => break code.parse().context("the command's exit code")?,
                    None => step::note(format!("the virtual machine has {said}")),
                },
                None => line(&text),
            },
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the virtual machine ended before the command did; its kernel's last messages:\n{}", messages());
            }
        }
        if Instant::now() > deadline {
            bail!("the command was not over after {patience:?}; the kernel's last messages:\n{}", messages());
        }
    };
    let off = Instant::now() + SWITCH_OFF;
    while machine.0.try_wait()?.is_none() && Instant::now() < off {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(code)
}

/// A running qemu. Dropping it ends it: nothing in there outlives what it was for.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
