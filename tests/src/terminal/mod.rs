//! A program in a terminal of its own: keys go in, and its screen is read as a person sees it.

mod picture;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::client::until;
use crate::netns::Netns;

/// How often what shows the screen looks whether it is to end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// The terminal, and the program that runs in it. The program is killed when this is dropped, if it has not ended.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    /// None after it was hung up.
    keys: Option<File>,
    screen: Screen,
    hung_up: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Screen(Arc<Mutex<vt100::Parser<Title>>>);

/// The window's title.
#[derive(Default)]
struct Title(String);

impl vt100::Callbacks for Title {
    fn set_window_title(&mut self, _: &mut vt100::Screen, title: &[u8]) {
        self.0 = String::from_utf8_lossy(title).into_owned();
    }
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}

impl Screen {
    fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).screen().contents()
    }

    fn take(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).process(bytes);
    }
}

impl Terminal {
    /// Starts a program in a namespace, with a terminal of so many rows and columns.
    ///
    /// # Errors
    /// There is no terminal to be had, or the program does not start.
    pub fn start(command: &mut Command, namespace: &Netns, rows: u16, columns: u16) -> Result<Self> {
        Self::start_by(command, |command| namespace.spawn(command), rows, columns)
    }

    /// The same in the namespace that the calling thread is in.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_here(command: &mut Command, rows: u16, columns: u16) -> Result<Self> {
        Self::start_by(command, |command| command.spawn().context("cannot start the program"), rows, columns)
    }

    fn start_by(
        command: &mut Command,
        spawn: impl FnOnce(&mut Command) -> Result<Child>,
        rows: u16,
        columns: u16,
    ) -> Result<Self> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).context("no terminal")?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let name = ptsname(&ours, Vec::new())?;
        tcsetwinsize(&ours, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
        let theirs: OwnedFd = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        command.stdin(Stdio::from(theirs.try_clone()?));
        command.stdout(Stdio::from(theirs.try_clone()?)).stderr(Stdio::from(theirs));
        command.env("TERM", "xterm-256color").process_group(0);
        let child = spawn(command)?;
        let [high, wide] = [rows, columns].map(NonZero::new);
        let (high, wide) = high.zip(wide).context("a terminal without room")?;
        let parser = vt100::Parser::new_with_callbacks(high, wide, 0, Title::default());
        let screen = Screen(Arc::new(Mutex::new(parser)));
        let keys = File::from(ours);
        let (mut output, shown) = (keys.try_clone()?, screen.clone());
        let hung_up = Arc::new(AtomicBool::new(false));
        let ends = hung_up.clone();
        // Ends when the program has, too: nobody has the other side open then.
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while !ends.load(Ordering::Relaxed) {
                match poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&LOOK)) {
                    Ok(0) | Err(Errno::INTR) => {}
                    _ => match output.read(&mut bytes) {
                        Ok(count @ 1..) => shown.take(&bytes[..count]),
                        _ => return,
                    },
                }
            }
        });
        // The command keeps descriptors of the other side until it is given others.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { child, keys: Some(keys), screen, hung_up, reader: Some(reader) })
    }

    /// Types.
    ///
    /// # Errors
    /// The program has ended.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        let terminal = self.keys.as_mut().context("it was hung up")?;
        terminal.write_all(keys.as_bytes()).context("nobody reads the keys")
    }

    /// Takes the terminal away from the program, as the end of a session over the network does. It is no session's leader, so no
    /// signal tells it.
    pub fn hang_up(&mut self) {
        self.keys = None;
        self.hung_up.store(true, Ordering::Relaxed);
        self.reader.take().map(JoinHandle::join);
    }

    /// The screen's lines.
    pub fn screen(&self) -> String {
        self.screen.text()
    }

    /// The screen as a picture.
    pub fn svg(&self) -> String {
        picture::svg(self.screen.0.lock().unwrap_or_else(PoisonError::into_inner).screen())
    }

    /// The title that the program gave the window; empty: none.
    pub fn title(&self) -> String {
        self.screen.0.lock().unwrap_or_else(PoisonError::into_inner).callbacks().0.clone()
    }

    /// Waits until the screen shows what is wanted, and gives it.
    ///
    /// # Errors
    /// It does not; the message has the screen.
    pub fn until(&self, what: &str, shows: impl Fn(&str) -> bool) -> Result<String> {
        until(what, || Some(self.screen()).filter(|screen| shows(screen)))
            .with_context(|| format!("the screen is:\n{}", self.screen()))
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// It does not end.
    pub fn ended(&mut self) -> Result<std::process::ExitStatus> {
        let child = &mut self.child;
        until("the program in the terminal to end", || child.try_wait().ok().flatten())
    }

    /// The program's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
