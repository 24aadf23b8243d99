//! A list of operations as one batch of netlink messages: one transaction.
//!
//! ```text
//! BATCH_BEGIN | NEWSETELEM table map [element…] | DELSETELEM … | … | BATCH_END
//! ```
//! Neighbouring operations of one kind on one map share a message, so their order stays as given.

use std::ops::Range;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_ECHO, NLM_F_REQUEST};

use super::attribute::{Message, NETFILTER_HEADER, Nest, Writer, attributes, value};
use super::element::Element;
use super::error::{Refused, RefusedPart};
use super::op::{About, Op, Ops, Way};

// enum nf_tables_msg_types, nft_set_elem_list_attributes; include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h
pub(super) const NFTABLES: u16 = 10 << 8;
const NFT_MSG_NEWSETELEM: u16 = NFTABLES | 12;
pub(super) const NFT_MSG_DELSETELEM: u16 = NFTABLES | 14;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(super) const NFPROTO_INET: u8 = 1;
pub(super) const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub(super) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(super) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;

/// Elements of one message, in bytes: an attribute's length has 16 bits, so the list must stay below 65,535.
pub(super) const GROUP: usize = 60_000;

/// The bytes of a transaction and where in them each operation went.
#[derive(Debug)]
pub(super) struct Batch {
    /// All messages.
    pub bytes: Vec<u8>,
    messages: Vec<Sent>,
    ops: usize,
}

#[derive(Debug)]
struct Sent {
    ops: Range<usize>,
    about: About,
    /// Where the message and, in it, the first element begin.
    begin: usize,
    elements: usize,
    end: usize,
}

/// A batch that grows; neighbouring rows of one kind and map share the open message.
struct Builder<'a> {
    writer: Writer,
    messages: Vec<Sent>,
    open: Option<(Message, Nest)>,
    next: usize,
    table: &'a str,
    sequence: u32,
    group: usize,
}

impl Builder<'_> {
    fn push(&mut self, op: &Op<'_>) {
        let Some((way, map, element)) = op.row() else {
            self.close();
            let at = self.writer.len();
            op.write_chain(&mut self.writer, self.table, sequence_of(self.sequence, self.messages.len()));
            let (about, end) = (op.about(), self.writer.len());
            self.messages.push(Sent { ops: self.next..self.next + 1, about, begin: at, elements: at, end });
            self.next += 1;
            return;
        };
        let fits = self.open.is_some()
            && self.messages.last().is_some_and(|sent| {
                matches!(&sent.about, About::Rows { way: same, map: other } if *same == way && other == map)
                    && self.writer.len() - sent.elements < self.group
            });
        if !fits {
            self.close();
            let (kind, flags) = match way {
                Way::Add => (NFT_MSG_NEWSETELEM, NLM_F_CREATE),
                Way::Delete => (NFT_MSG_DELSETELEM, 0),
                Way::Take => (NFT_MSG_DELSETELEM, NLM_F_ECHO),
            };
            let begin = self.writer.len();
            let number = sequence_of(self.sequence, self.messages.len());
            let message = self.writer.message(kind, NLM_F_REQUEST | flags, number, NFPROTO_INET, 0);
            self.writer.text(NFTA_SET_ELEM_LIST_TABLE, self.table);
            self.writer.text(NFTA_SET_ELEM_LIST_SET, map);
            self.open = Some((message, self.writer.nest(NFTA_SET_ELEM_LIST_ELEMENTS)));
            let elements = self.writer.len();
            self.messages.push(Sent { ops: self.next..self.next, about: op.about(), begin, elements, end: elements });
        }
        element.write(&mut self.writer, way == Way::Add);
        self.next += 1;
        if let Some(sent) = self.messages.last_mut() {
            sent.ops.end = self.next;
        }
    }

    fn close(&mut self) {
        if let Some((message, list)) = self.open.take() {
            self.writer.end(list);
            self.writer.end_message(message);
            if let Some(sent) = self.messages.last_mut() {
                sent.end = self.writer.len();
            }
        }
    }
}

impl Batch {
    /// Writes operations on `table`, in the order in which `ops` pushes them. The messages are numbered from `sequence`
    /// (the batch's begin) upwards; the last one with content asks for an acknowledgement. A message holds at most
    /// `group` bytes of elements, or one element.
    pub(super) fn new(table: &str, ops: &Ops<'_>, sequence: u32, group: usize) -> Self {
        let mut builder =
            Builder { writer: Writer::default(), messages: Vec::new(), open: None, next: 0, table, sequence, group };
        let begin = builder.writer.message(
            NFNL_MSG_BATCH_BEGIN,
            NLM_F_REQUEST,
            sequence,
            0, /* unspec */
            NFNL_SUBSYS_NFTABLES,
        );
        builder.writer.end_message(begin);
        ops(&mut |op| builder.push(&op));
        builder.close();
        let Builder { mut writer, messages, .. } = builder;
        if let Some(last) = messages.last() {
            writer.add_flags(last.begin, NLM_F_ACK);
        }
        let number = sequence_of(sequence, messages.len());
        let end = writer.message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, number, 0, NFNL_SUBSYS_NFTABLES);
        writer.end_message(end);
        Self { bytes: writer.into_bytes(), messages, ops: builder.next }
    }

    /// How many messages have elements: the last of them is numbered `sequence` of the batch plus this.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// What the kernel means when it refuses message `message` (0 is the batch's begin) with `errno`, pointing at byte
    /// `offset` of that message where it does.
    pub(super) fn refused(&self, table: &str, message: usize, errno: i32, offset: Option<usize>) -> Refused {
        let Some(sent) = message.checked_sub(1).and_then(|at| self.messages.get(at)) else {
            return Refused { errno, ops: 0..self.ops, part: RefusedPart::Transaction };
        };
        let (add, map) = match &sent.about {
            About::Rows { way, map } => (*way == Way::Add, map.clone()),
            About::Chain(chain) => {
                return Refused { errno, ops: sent.ops.clone(), part: RefusedPart::Chain(chain.clone()) };
            }
            About::Table => {
                return Refused { errno, ops: sent.ops.clone(), part: RefusedPart::Table(table.to_owned()) };
            }
        };
        let element = |index: usize| {
            let key = self.key(sent, index - sent.ops.start).iter().map(|byte| format!("{byte:02x}")).collect();
            let part = RefusedPart::Element { map: map.clone(), key, add };
            Refused { errno, ops: index..index + 1, part }
        };
        match offset.map(|offset| sent.begin + offset) {
            Some(at) if at == sent.begin + NETFILTER_HEADER => {
                Refused { errno, ops: 0..self.ops, part: RefusedPart::Table(table.to_owned()) }
            }
            Some(at) if at >= sent.elements && at < sent.end => element(sent.ops.start + self.element_at(sent, at)),
            // No pointer, but one element only: it is that, unless the map is what lacks.
            None if sent.ops.len() == 1 => element(sent.ops.start),
            _ => Refused { errno, ops: sent.ops.clone(), part: RefusedPart::Map(map) },
        }
    }

    /// The key of an element of a message.
    fn key(&self, sent: &Sent, index: usize) -> Vec<u8> {
        let element = attributes(&self.bytes[sent.elements..sent.end]).flatten().nth(index);
        element.and_then(|element| Element::read(value(&element)).ok()).map(|element| element.key).unwrap_or_default()
    }

    /// The index, within its message, of the element that holds byte `at` of the batch.
    fn element_at(&self, sent: &Sent, at: usize) -> usize {
        let mut end = sent.elements;
        for (index, attribute) in attributes(&self.bytes[sent.elements..sent.end]).flatten().enumerate() {
            end += usize::from(attribute.length()).next_multiple_of(4);
            if at < end {
                return index;
            }
        }
        sent.ops.len() - 1
    }
}

fn sequence_of(begin: u32, messages: usize) -> u32 {
    begin.wrapping_add(1).wrapping_add(u32::try_from(messages).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::attribute::frames;
    use super::super::element::Data;
    use super::*;

    fn pushing<'a>(ops: &'a [Op<'a>]) -> impl Fn(&mut dyn FnMut(Op<'_>)) + 'a {
        move |push| ops.iter().for_each(|op| push(*op))
    }

    fn element(number: u8) -> Element {
        Element::new(vec![10, 0, 0, number], Data::Value(vec![number; 4]))
    }

    #[test]
    fn neighbours_are_grouped_and_order_is_kept() {
        let (a, b, c) = (element(1), element(2), element(3));
        let ops = [
            Op::Add { map: "m", element: &a },
            Op::Add { map: "m", element: &b },
            Op::Delete { map: "m", element: &a },
            Op::Add { map: "m", element: &a },
            Op::Add { map: "n", element: &c },
        ];
        let batch = Batch::new("t", &pushing(&ops), 100, GROUP);
        let ranges: Vec<_> = batch.messages.iter().map(|sent| sent.ops.clone()).collect();
        assert_eq!(ranges, [0..2, 2..3, 3..4, 4..5]);
        let frames: Vec<_> = frames(&batch.bytes).map(|frame| frame.unwrap()).collect();
        let kinds: Vec<_> = frames.iter().map(|frame| (frame.message_type(), frame.sequence_number())).collect();
        let (new, del) = (NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM);
        assert_eq!(kinds, [(16, 100), (new, 101), (del, 102), (new, 103), (new, 104), (17, 105)]);
        let acknowledged: Vec<_> = frames.iter().map(|frame| frame.flags() & NLM_F_ACK != 0).collect();
        assert_eq!(acknowledged, [false, false, false, false, true, false]);
    }

    #[test]
    fn a_list_never_outgrows_its_length_field() {
        let elements: Vec<_> = (0..10_000u32)
            .map(|number| Element::new(number.to_be_bytes().to_vec(), Data::Goto("c".repeat(128))))
            .collect();
        let ops: Vec<_> = elements.iter().map(|element| Op::Add { map: "m", element }).collect();
        let batch = Batch::new("t", &pushing(&ops), 1, GROUP);
        assert!(batch.len() > 10);
        assert!(batch.messages.iter().all(|sent| sent.end - sent.begin < 65_535));
        assert_eq!(batch.messages.iter().map(|sent| sent.ops.len()).sum::<usize>(), ops.len());
        let single = Batch::new("t", &pushing(&ops), 1, 0);
        assert_eq!(single.len(), ops.len());
    }

    #[test]
    fn a_pointer_into_a_message_finds_its_row() {
        let elements = [element(1), element(2), element(3)];
        let ops: Vec<_> = elements.iter().map(|element| Op::Add { map: "m", element }).collect();
        let batch = Batch::new("t", &pushing(&ops), 1, GROUP);
        let sent = &batch.messages[0];
        let size = (sent.end - sent.elements) / 3;
        for index in 0..3 {
            let offset = sent.elements - sent.begin + size * index;
            let refused = batch.refused("t", 1, libc::EEXIST, Some(offset));
            assert_eq!(refused.ops, index..index + 1);
            assert!(refused.to_string().starts_with(&format!("the kernel refused to add row 0a00000{}", index + 1)));
        }
        assert_eq!(batch.refused("t", 1, libc::ENOENT, None).ops, 0..3);
        assert_eq!(batch.refused("t", 0, libc::EPERM, None).part, RefusedPart::Transaction);
        let table = batch.refused("t", 1, libc::ENOENT, Some(NETFILTER_HEADER));
        assert_eq!(table.part, RefusedPart::Table("t".to_owned()));
    }
}
