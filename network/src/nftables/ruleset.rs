//! The one table `estiba`: what never changes in it. Its parts are named for what they do; `nft list table inet estiba`
//! shows them.

use crate::netfilter::{APPEND, CREATE, EXCLUSIVE, Messages, Transaction};

pub(super) const TABLE: &str = "estiba";

/// `NFPROTO_INET`: both families.
pub(super) const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

pub(super) mod message {
    //! `NFT_MSG_*`, in the subsystem of nf_tables.
    pub(crate) const NEW_TABLE: u16 = 0xa00;
    pub(crate) const DELETE_TABLE: u16 = 0xa02;
    pub(crate) const NEW_CHAIN: u16 = 0xa03;
    pub(crate) const NEW_RULE: u16 = 0xa06;
    pub(crate) const NEW_SET: u16 = 0xa09;
    pub(crate) const NEW_ELEMENT: u16 = 0xa0c;
    pub(crate) const GET_ELEMENT: u16 = 0xa0d;
    pub(crate) const DELETE_ELEMENT: u16 = 0xa0e;
    pub(crate) const GET_GENERATION: u16 = 0xa10;
}

/// A set of interfaces' names, or a map of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// All bridges.
    Bridges,
    /// Each bridge with itself.
    Same,
    /// The bridges that nothing leaves and nothing enters.
    Internal,
    /// The bridges that let each other in.
    Open,
    /// The bridges that everybody is let into.
    Unwalled,
    /// The bridges whose containers have the host's address outside.
    Masked,
    /// Each network's addresses with its bridge.
    Own4,
    Own6,
    /// Ports of one address of the host.
    Bound4,
    Bound6,
    /// Ports of all addresses of the host.
    Any4,
    Any6,
}

/// nft's numbers of data types, which it shows elements by.
const IPV4_ADDRESS: u32 = 7;
const IPV6_ADDRESS: u32 = 8;
const PROTOCOL: u32 = 12;
const SERVICE: u32 = 13;
const IFNAME: u32 = 41;

fn joined(types: &[u32]) -> u32 {
    types.iter().fold(0, |sum, kind| sum << 6 | kind)
}

impl Set {
    const ALL: [Self; 12] = [
        Self::Bridges,
        Self::Same,
        Self::Internal,
        Self::Open,
        Self::Unwalled,
        Self::Masked,
        Self::Own4,
        Self::Own6,
        Self::Bound4,
        Self::Bound6,
        Self::Any4,
        Self::Any6,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bridges => "bridges",
            Self::Same => "same",
            Self::Internal => "internal",
            Self::Open => "open",
            Self::Unwalled => "unwalled",
            Self::Masked => "masked",
            Self::Own4 => "own",
            Self::Own6 => "own6",
            Self::Bound4 => "ports-of-address",
            Self::Bound6 => "ports-of-address6",
            Self::Any4 => "ports",
            Self::Any6 => "ports6",
        }
    }

    /// The lengths of a key's parts, of sets that have ranges of them.
    fn fields(self) -> &'static [u32] {
        match self {
            Self::Own4 => &[4, 16],
            Self::Own6 => &[16, 16],
            _ => &[],
        }
    }

    /// The type and length of a key, and of a map's value.
    fn layout(self) -> ((u32, u32), Option<(u32, u32)>) {
        let value = |address: u32, length: u32| Some((joined(&[address, SERVICE]), length + 4));
        match self {
            Self::Bridges | Self::Internal | Self::Open | Self::Unwalled | Self::Masked => ((IFNAME, 16), None),
            Self::Same => ((joined(&[IFNAME, IFNAME]), 32), None),
            Self::Own4 => ((joined(&[IPV4_ADDRESS, IFNAME]), 20), None),
            Self::Own6 => ((joined(&[IPV6_ADDRESS, IFNAME]), 32), None),
            Self::Bound4 => ((joined(&[IPV4_ADDRESS, PROTOCOL, SERVICE]), 12), value(IPV4_ADDRESS, 4)),
            Self::Bound6 => ((joined(&[IPV6_ADDRESS, PROTOCOL, SERVICE]), 24), value(IPV6_ADDRESS, 16)),
            Self::Any4 => ((joined(&[PROTOCOL, SERVICE]), 8), value(IPV4_ADDRESS, 4)),
            Self::Any6 => ((joined(&[PROTOCOL, SERVICE]), 8), value(IPV6_ADDRESS, 16)),
        }
    }
}

/// The table with its sets, chains and rules. It fails with `EEXIST` if the table is there.
pub(super) fn write(transaction: &mut Transaction) {
    let messages = &mut transaction.messages;
    messages.begin(message::NEW_TABLE, CREATE | EXCLUSIVE, INET, 0).text(1, TABLE).number(2, 0);
    for (number, set) in Set::ALL.into_iter().enumerate() {
        let ((key_type, key_length), value) = set.layout();
        messages.begin(message::NEW_SET, CREATE, INET, 0).text(1, TABLE).text(2, set.name());
        let fields = set.fields();
        // NFT_SET_MAP, or NFT_SET_INTERVAL and NFT_SET_CONCAT.
        let flags = if value.is_some() {
            0x8
        } else if fields.is_empty() {
            0
        } else {
            0x84
        };
        messages.number(3, flags).number(4, key_type).number(5, key_length);
        if let Some((value_type, value_length)) = value {
            messages.number(6, value_type).number(7, value_length);
        }
        if !fields.is_empty() {
            messages.nest(9, |description| {
                description.nest(2, |concatenation| {
                    for length in fields {
                        concatenation.nest(1, |field| {
                            field.number(1, *length);
                        });
                    }
                });
            });
        }
        messages.number(10, number as u32 + 1);
    }
    let (prerouting, forward, output, postrouting) = (0, 2, 3, 4);
    // Before connection tracking: nobody but the host itself addresses 127.0.0.0/8, though bridges route it
    // (`route_localnet`, for answers to the host's own connections). CVE-2020-8558.
    chain(messages, "guard", "filter", prerouting, -300);
    rule(messages, "guard", |rule| {
        rule.input_interface(1).lookup(Set::Bridges, 1, None, false);
        rule.family(IPV4).loopback_destination().verdict(DROP);
    });
    chain(messages, "ports-from-outside", "nat", prerouting, -100);
    chain(messages, "ports-from-host", "nat", output, -100);
    for chain in ["ports-from-outside", "ports-from-host"] {
        rule(messages, chain, |rule| {
            rule.family(IPV4).network(16, 4, 1).protocol(9).destination_port(10).lookup(Set::Bound4, 1, Some(1), false);
            rule.destination_nat(IPV4, 1, 9);
        });
        rule(messages, chain, |rule| {
            rule.family(IPV4).local_destination().protocol(1).destination_port(9).lookup(Set::Any4, 1, Some(1), false);
            rule.destination_nat(IPV4, 1, 9);
        });
        rule(messages, chain, |rule| {
            rule.family(IPV6).network(24, 16, 1).protocol(2).destination_port(13).lookup(
                Set::Bound6,
                1,
                Some(1),
                false,
            );
            rule.destination_nat(IPV6, 1, 2);
        });
        rule(messages, chain, |rule| {
            // ::1 cannot leave an interface, and there is no route_localnet for it: it is let alone.
            let mut loopback = [0; 16];
            loopback[15] = 1;
            rule.family(IPV6).network(24, 16, 1).compare(1, NOT_EQUAL, &loopback);
            rule.local_destination().protocol(1).destination_port(9).lookup(Set::Any6, 1, Some(1), false);
            rule.destination_nat(IPV6, 1, 2);
        });
    }
    chain(messages, "addresses", "nat", postrouting, 100);
    // A container that reaches a port of its own network by the host's address: the answer has to come back here.
    // It is told by its address, since there is no input interface where `br_netfilter` calls this for the bridge.
    rule(messages, "addresses", |rule| {
        rule.family(IPV4)
            .network(12, 4, 1)
            .output_interface(9)
            .lookup(Set::Own4, 1, None, false)
            .translated()
            .masquerade();
    });
    rule(messages, "addresses", |rule| {
        rule.family(IPV6)
            .network(8, 16, 1)
            .output_interface(2)
            .lookup(Set::Own6, 1, None, false)
            .translated()
            .masquerade();
    });
    rule(messages, "addresses", |rule| {
        rule.family(IPV4).loopback_source().output_interface(1).lookup(Set::Bridges, 1, None, false).masquerade();
    });
    rule(messages, "addresses", |rule| {
        rule.input_interface(1).lookup(Set::Masked, 1, None, false);
        rule.output_interface(1).lookup(Set::Bridges, 1, None, true).masquerade();
    });
    chain(messages, "walls", "filter", forward, 0);
    rule(messages, "walls", |rule| {
        rule.connection_state(6).verdict(ACCEPT);
    });
    rule(messages, "walls", |rule| {
        rule.input_interface(1).output_interface(2).lookup(Set::Same, 1, None, false).verdict(ACCEPT);
    });
    rule(messages, "walls", |rule| {
        rule.input_interface(1).lookup(Set::Internal, 1, None, false).verdict(DROP);
    });
    rule(messages, "walls", |rule| {
        rule.translated().verdict(ACCEPT);
    });
    rule(messages, "walls", |rule| {
        rule.input_interface(1).lookup(Set::Open, 1, None, false);
        rule.output_interface(1).lookup(Set::Open, 1, None, false).verdict(ACCEPT);
    });
    rule(messages, "walls", |rule| {
        rule.output_interface(1).lookup(Set::Unwalled, 1, None, false).verdict(ACCEPT);
    });
    rule(messages, "walls", |rule| {
        rule.output_interface(1).lookup(Set::Bridges, 1, None, false).verdict(DROP);
    });
}

fn chain(messages: &mut Messages, name: &str, kind: &str, hook: u32, priority: i32) {
    messages.begin(message::NEW_CHAIN, CREATE, INET, 0).text(1, TABLE).text(3, name);
    messages.nest(4, |nest| {
        nest.number(1, hook).number(2, priority as u32);
    });
    // The policy is to accept: what is no container's is none of our business.
    messages.number(5, ACCEPT).text(7, kind);
}

fn rule(messages: &mut Messages, chain: &str, write: impl FnOnce(&mut Rule<'_>)) {
    messages.begin(message::NEW_RULE, CREATE | APPEND, INET, 0).text(1, TABLE).text(2, chain);
    messages.nest(4, |nest| write(&mut Rule { messages: nest }));
}

const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// The expressions of a rule, in their order. Registers 1 to 4 have 16 bytes; 8 to 23 are the same room in pieces of 4.
struct Rule<'a> {
    messages: &'a mut Messages,
}

impl Rule<'_> {
    fn expression(&mut self, name: &str, write: impl FnOnce(&mut Messages)) -> &mut Self {
        self.messages.nest(1, |element| {
            element.text(1, name).nest(2, write);
        });
        self
    }

    fn meta(&mut self, key: u32, register: u32) -> &mut Self {
        self.expression("meta", |m| {
            m.number(1, register).number(2, key);
        })
    }

    fn input_interface(&mut self, register: u32) -> &mut Self {
        self.meta(6, register)
    }

    fn output_interface(&mut self, register: u32) -> &mut Self {
        self.meta(7, register)
    }

    fn protocol(&mut self, register: u32) -> &mut Self {
        self.meta(16, register)
    }

    fn family(&mut self, family: u8) -> &mut Self {
        self.meta(15, 1).compare(1, EQUAL, &[family])
    }

    fn compare(&mut self, register: u32, operation: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |m| {
            m.number(1, register).number(2, operation).nest(3, |data| {
                data.bytes(1, value);
            });
        })
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) -> &mut Self {
        self.expression("payload", |m| {
            m.number(1, register).number(2, base).number(3, offset).number(4, length);
        })
    }

    fn network(&mut self, offset: u32, length: u32, register: u32) -> &mut Self {
        self.payload(1, offset, length, register)
    }

    fn destination_port(&mut self, register: u32) -> &mut Self {
        self.payload(2, 2, 2, register)
    }

    fn loopback_destination(&mut self) -> &mut Self {
        self.network(16, 1, 1).compare(1, EQUAL, &[127])
    }

    fn loopback_source(&mut self) -> &mut Self {
        self.network(12, 1, 1).compare(1, EQUAL, &[127])
    }

    /// The destination is one of the host's own addresses (`RTN_LOCAL`).
    fn local_destination(&mut self) -> &mut Self {
        self.expression("fib", |m| {
            m.number(1, 1).number(2, 3).number(3, 2);
        });
        self.compare(1, EQUAL, &2_u32.to_ne_bytes())
    }

    fn lookup(&mut self, set: Set, key: u32, value: Option<u32>, inverted: bool) -> &mut Self {
        self.expression("lookup", |m| {
            m.text(1, set.name()).number(2, key);
            if let Some(value) = value {
                m.number(3, value);
            }
            if inverted {
                m.number(5, 1);
            }
        })
    }

    fn connection(&mut self, key: u32, bits: u32) -> &mut Self {
        self.expression("ct", |m| {
            m.number(1, 1).number(2, key);
        });
        self.expression("bitwise", |m| {
            m.number(1, 1).number(2, 1).number(3, 4);
            m.nest(4, |data| {
                data.bytes(1, &bits.to_ne_bytes());
            });
            m.nest(5, |data| {
                data.bytes(1, &[0; 4]);
            });
        });
        self.compare(1, NOT_EQUAL, &[0; 4])
    }

    /// 2 is established, 4 is related.
    fn connection_state(&mut self, bits: u32) -> &mut Self {
        self.connection(0, bits)
    }

    /// Its destination was translated (`IPS_DST_NAT`): it came by a published port.
    fn translated(&mut self) -> &mut Self {
        self.connection(2, 1 << 5)
    }

    fn masquerade(&mut self) -> &mut Self {
        self.expression("masq", |_| ())
    }

    fn destination_nat(&mut self, family: u8, address: u32, port: u32) -> &mut Self {
        self.expression("nat", |m| {
            m.number(1, 1).number(2, family.into()).number(3, address).number(5, port);
        })
    }

    fn verdict(&mut self, code: u32) -> &mut Self {
        self.expression("immediate", |m| {
            m.number(1, 0).nest(2, |data| {
                data.nest(2, |verdict| {
                    verdict.number(1, code);
                });
            });
        })
    }
}
