//! Netlink messages and attributes as bytes: a writer, and reading by [`attributes`] and [`frames`].
//!
//! An attribute is `u16 length, u16 kind` in host order, then the value, padded to 4 bytes; a message is a `nlmsghdr`
//! of 16 bytes, for netfilter followed by a `nfgenmsg` of 4 (family, version, resource id in network order).

use netlink_packet_core::{NLA_F_NESTED, NetlinkBuffer, NlaBuffer, NlasIterator};

use super::error::Error;

/// Length of `nlmsghdr`, in bytes.
pub(crate) const HEADER: usize = 16;
/// Length of `nlmsghdr` and `nfgenmsg`, in bytes.
pub(crate) const NETFILTER_HEADER: usize = HEADER + 4;

/// Appends messages to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

/// A message begun and not yet ended; holds the place of its header.
#[derive(Debug, Clone, Copy)]
#[must_use = "a message without an end has no length"]
pub(crate) struct Message(usize);

/// A nested attribute begun and not yet ended; holds the place of its header.
#[derive(Debug, Clone, Copy)]
#[must_use = "an attribute without an end has no length"]
pub(crate) struct Nest(usize);

impl Writer {
    /// Begins a netfilter message: `kind` is `subsystem << 8 | message`, `resource` the `res_id` of `nfgenmsg`.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) -> Message {
        let message = Message(self.bytes.len());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        message
    }

    /// Ends a message: writes its length.
    pub(crate) fn end_message(&mut self, Message(at): Message) {
        let length = u32::try_from(self.bytes.len() - at).unwrap_or(u32::MAX);
        self.bytes[at..at + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Adds flags to a message begun at byte `at`.
    pub(crate) fn add_flags(&mut self, at: usize, flags: u16) {
        let old = u16::from_ne_bytes([self.bytes[at + 6], self.bytes[at + 7]]);
        self.bytes[at + 6..at + 8].copy_from_slice(&(old | flags).to_ne_bytes());
    }

    /// An attribute with a plain value.
    pub(crate) fn value(&mut self, kind: u16, value: &[u8]) {
        let nest = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.end(nest);
    }

    /// An attribute with text, ended by a zero byte as netfilter expects.
    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        let nest = self.open(kind);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.end(nest);
    }

    /// Attributes as another message had them.
    pub(crate) fn raw(&mut self, attributes: &[u8]) {
        self.bytes.extend_from_slice(attributes);
    }

    /// Begins an attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16) -> Nest {
        self.open(kind | NLA_F_NESTED)
    }

    fn open(&mut self, kind: u16) -> Nest {
        let nest = Nest(self.bytes.len());
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        nest
    }

    /// Ends an attribute: writes its length and pads it. A value too long for the 16 bits of the length is given the
    /// greatest length, which the kernel refuses: the caller keeps groups small enough.
    pub(crate) fn end(&mut self, Nest(at): Nest) {
        let length = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// How many bytes are written.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// The attributes side by side in `bytes`.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<NlaBuffer<&[u8]>, Error>> {
    NlasIterator::new(bytes).map(|attribute| attribute.map_err(|error| Error::Malformed(error.to_string())))
}

/// The value of the first attribute of `kind` in `bytes`.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Result<Option<&[u8]>, Error> {
    for attribute in attributes(bytes) {
        let attribute = attribute?;
        if attribute.kind() == kind {
            return Ok(Some(value(&attribute)));
        }
    }
    Ok(None)
}

/// The value of an attribute, living as long as the bytes it was read from.
pub(crate) fn value<'a>(attribute: &NlaBuffer<&'a [u8]>) -> &'a [u8] {
    let length = usize::from(attribute.length());
    // `into_inner` gives the rest of the buffer; `NlasIterator` has checked that `length` is within it.
    &attribute.into_inner()[4..length]
}

/// Whether the writer marked an attribute as one that holds attributes; the kernel does not always.
pub(crate) fn is_nested(attribute: &NlaBuffer<&[u8]>) -> bool {
    u16::from_ne_bytes([attribute.into_inner()[2], attribute.into_inner()[3]]) & NLA_F_NESTED != 0
}

/// Text of an attribute, without its zero byte.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A big-endian `u32`; anything of another length is malformed.
pub(crate) fn u32_be(value: &[u8]) -> Result<u32, Error> {
    let bytes = value.try_into().map_err(|_| Error::Malformed(format!("a u32 of {} bytes", value.len())))?;
    Ok(u32::from_be_bytes(bytes))
}

/// The messages side by side in `bytes`, as datagrams from the kernel hold them.
pub(crate) fn frames(bytes: &[u8]) -> impl Iterator<Item = Result<NetlinkBuffer<&[u8]>, Error>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let frame = match NetlinkBuffer::new_checked(rest) {
            Ok(frame) => frame,
            Err(error) => {
                rest = &[];
                return Some(Err(Error::Malformed(error.to_string())));
            }
        };
        let next = (frame.length() as usize).next_multiple_of(4).min(rest.len());
        rest = &rest[next..];
        Some(Ok(frame))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        let message = writer.message(0x0a0c, 5, 7, 1, 0);
        writer.text(1, "kubeferry");
        let nest = writer.nest(3);
        writer.value(1, &[1, 2, 3]);
        writer.value(2, &[4]);
        writer.end(nest);
        writer.end_message(message);
        let bytes = writer.into_bytes();
        let frames: Vec<_> = frames(&bytes).map(|frame| frame.unwrap()).collect();
        assert_eq!(frames.len(), 1);
        assert_eq!((frames[0].length() as usize, frames[0].sequence_number()), (bytes.len(), 7));
        let body = &bytes[NETFILTER_HEADER..];
        assert_eq!(text(find(body, 1).unwrap().unwrap()), "kubeferry");
        let nested = find(body, 3).unwrap().unwrap();
        assert_eq!(find(nested, 1).unwrap(), Some(&[1, 2, 3][..]));
        assert_eq!(find(nested, 2).unwrap(), Some(&[4][..]));
        assert_eq!(find(nested, 9).unwrap(), None);
    }

    #[test]
    fn cut_bytes_are_an_error_and_not_a_panic() {
        let mut writer = Writer::default();
        let message = writer.message(0x0a0c, 5, 7, 1, 0);
        writer.text(1, "kubeferry");
        writer.end_message(message);
        let bytes = writer.into_bytes();
        for end in 1..bytes.len() {
            assert!(frames(&bytes[..end]).next().unwrap().is_err(), "{end}");
        }
        assert!(find(&bytes[NETFILTER_HEADER..bytes.len() - 4], 1).is_err());
        assert!(find(&[3, 0, 1, 0], 1).is_err(), "a length shorter than the header");
        assert!(u32_be(&[1, 2]).is_err());
    }
}
