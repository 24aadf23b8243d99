//! Running the tools that build a topology, with errors that say what is missing.

use std::io::{ErrorKind, Write};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// The Debian package that holds a tool.
fn package_of(tool: &str) -> &str {
    match tool {
        "ip" => "iproute2",
        "nft" => "nftables",
        iptables if iptables.starts_with("iptables") || iptables.starts_with("ip6tables") => "iptables",
        "setpriv" | "unshare" => "util-linux",
        "ping" => "iputils-ping",
        other => other,
    }
}

/// Runs `tool arguments…` with `input` on its standard input and returns what it printed.
///
/// # Errors
/// The tool is missing (the message names the package), the right is missing (the message names it), or the tool failed.
pub fn tool(tool: &str, arguments: &[&str], input: &str) -> Result<String> {
    let output = output(Command::new(tool).args(arguments), input)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let right = if stderr.contains("Operation not permitted") || stderr.contains("Permission denied") {
        "\nthis needs root: CAP_NET_ADMIN and CAP_SYS_ADMIN"
    } else {
        ""
    };
    bail!("`{tool} {}` failed with {}:\n{}{right}", arguments.join(" "), output.status, stderr.trim_end())
}

/// Runs a command to its end with `input` on its standard input.
///
/// # Errors
/// The program is missing or could not be started.
pub fn output(command: &mut Command, input: &str) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = match command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("`{program}` is not installed: apt-get install {}", package_of(&program))
        }
        Err(error) => return Err(error).with_context(|| format!("cannot start `{program}`")),
    };
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        if let Some(mut stdin) = stdin {
            // A program that ends without reading its input is no fault of ours: its status tells.
            scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
        }
        child.wait_with_output().with_context(|| format!("cannot wait for `{program}`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_named() {
        let error = tool("kubeferry-no-such-tool", &[], "").unwrap_err().to_string();
        assert!(error.contains("`kubeferry-no-such-tool` is not installed"), "{error}");
    }

    #[test]
    fn a_failing_tool_shows_what_it_said() {
        let error = tool("sh", &["-c", "echo no good >&2; exit 3"], "").unwrap_err().to_string();
        assert!(error.contains("no good") && error.contains("exit status: 3"), "{error}");
    }
}
