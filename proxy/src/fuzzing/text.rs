//! Short texts.

use std::net::IpAddr;

use super::objects::text;
use crate::backend::nftables::nft;
use crate::config::{go_duration, go_duration_text};
use crate::state::convert::sloppy::{parse_cidr, parse_ip, parse_socket, parse_source};
use crate::status;

/// Addresses, CIDRs and sockets as Kubernetes' objects have them: what is read is written, and read again.
pub fn addresses(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let ip = parse_ip(text);
    if let Ok(strict) = text.parse::<IpAddr>() {
        assert_eq!(ip, Some(strict.to_canonical()), "sloppy is not strange");
    }
    if let Some(ip) = ip {
        assert_eq!(parse_ip(&ip.to_string()), Some(ip));
        assert_eq!(parse_source(text), Some((ip, None)));
    }
    if let Some(cidr) = parse_cidr(text) {
        assert_eq!(parse_cidr(&cidr.to_string()), Some(cidr));
        assert_eq!(cidr, cidr.trunc());
    }
    if let Some(socket) = parse_socket(text) {
        assert_eq!(parse_socket(&socket.to_string()), Some(socket));
        assert!(parse_source(text).is_some());
    }
}

/// Durations as Go writes them.
pub fn durations(bytes: &[u8]) {
    let Some(duration) = text(bytes).and_then(|text| go_duration(text).ok()) else { return };
    let written = go_duration_text(duration);
    assert_eq!(go_duration(&written), Ok(duration), "{written}");
}

/// What `nft --version` and the kernel say of themselves.
pub fn versions(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(version) = nft::Version::find(text.strip_prefix("nftables v").unwrap_or(&text)) {
        assert_eq!(nft::Version::find(&version.to_string()), Some(version));
    }
    assert!(nft::complaint(&text).len() <= nft::COMPLAINT + " …".len());
}

/// What answers where the proxy's status should be. What is shown of it moves no cursor.
pub fn http_answer(bytes: &[u8]) {
    for text in status::fuzzing::shown(bytes) {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}

/// What the API is asked for behind the `?`.
pub fn api_questions(bytes: &[u8]) {
    crate::health::api::fuzzing::asked(&String::from_utf8_lossy(bytes));
}

/// Lines of the BPF programs' log, and the kernel's ranges of ports.
#[cfg(feature = "ebpf")]
pub fn program_log(bytes: &[u8]) {
    use crate::backend::ebpf::{log, ports};
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    let (local, reserved) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if let Some((first, last)) = ports::overlap((16_384, 29_999), local, reserved) {
        assert!(16_384 <= first && first <= last && last <= 29_999);
    }
    lines.for_each(|text| assert!(log::line(text).contains(' ')));
}
