# What is measured of a TD, a second time: by public documents, with hashlib and struct. It shares no code with the crate it is held against.
#
# Reads launches as JSON from a file; prints one line of JSON for each: a digest or "refused" under each name. Where virt-firmware is
# installed, its reading of the TDX metadata and its Authenticode digest are held against those of this file as well.
#
# Sources: Intel TDX Virtual Firmware Design Guide (344991), sections 4.2 and 11; TDX Module ABI (348551), TDH.MEM.PAGE.ADD and
# TDH.MR.EXTEND; Windows Authenticode Portable Executable Signature Format; Linux Documentation/arch/x86/boot.rst; UEFI PI 1.8, volume 3.
import hashlib
import json
import logging
import struct
import sys

try:
    import pefile
    from virt.firmware import dump
    from virt.peutils import pesign
except ImportError:
    pesign = None

PAGE, CHUNK, FOUR_GIB = 4096, 256, 1 << 32
BFV, CFV, TD_HOB, TEMP_MEM = range(4)
MR_EXTEND = 1
# GUIDs in the byte order of UEFI.
FOOTER = bytes.fromhex("de82b596b21ff745baeaa366c55a082d")
TDX_METADATA = bytes.fromhex("35657ae44a989847865e4685a7bf8ec2")


class Refused(Exception):
    """No VMM launches this."""


def require(condition, what):
    if not condition:
        raise Refused(what)


def sha384(data):
    return hashlib.sha384(data).digest()


def replay(digests):
    value = bytes(48)
    for digest in digests:
        value = sha384(value + digest)
    return value


# The firmware's metadata.

def metadata_offset(image):
    """From the table of GUIDs that ends 32 bytes before the end of the image; it is read from its end."""
    end = len(image) - 32
    require(image[end - 16:end] == FOOTER, "footer")
    (length,) = struct.unpack_from("<H", image, end - 18)
    first, at = end - length, end - 18
    while at > first:
        (length,) = struct.unpack_from("<H", image, at - 18)
        require(18 <= length <= at - first, "entry of the footer")
        if image[at - 16:at] == TDX_METADATA:
            return len(image) - struct.unpack_from("<I", image, at - length)[0]
        at -= length
    raise Refused("no TDX metadata")


def sections(image):
    at = metadata_offset(image)
    signature, _, version, count = struct.unpack_from("<4sIII", image, at)
    require(signature == b"TDVF" and version == 1, "descriptor")
    found = [struct.unpack_from("<IIQQII", image, at + 16 + 32 * n) for n in range(count)]
    taken = []
    for offset, raw, gpa, size, kind, _ in found:
        require(kind in (BFV, CFV, TD_HOB, TEMP_MEM), "kind")
        require(gpa % PAGE == 0 and size % PAGE == 0 and size > 0, "whole pages")
        require(raw <= size and offset + raw <= len(image), "content")
        require((raw > 0) == (kind in (BFV, CFV)), "content of this kind")
        # A page that is there cannot be added again: TDX_EPT_ENTRY_STATE_INCORRECT.
        require(all(gpa + size <= other or gpa >= end for other, end in taken), "overlap")
        taken.append((gpa, gpa + size))
    require([kind for *_, kind, _ in found].count(TD_HOB) == 1, "one TD HOB")
    require(any(kind == BFV and gpa + size == FOUR_GIB for _, _, gpa, size, kind, _ in found), "reset vector")
    return found


def mrtd(image, found, order):
    digest = hashlib.sha384()

    def add(gpa):
        digest.update(struct.pack("<16sQ104x", b"MEM.PAGE.ADD", gpa))

    def extend(gpa, page):
        for at in range(0, PAGE, CHUNK):
            digest.update(struct.pack("<16sQ104x", b"MR.EXTEND", gpa + at))
            digest.update(page[at:at + CHUNK])

    for offset, raw, gpa, size, _, attributes in found:
        content = image[offset:offset + raw].ljust(size, b"\0")
        addresses = range(0, size, PAGE)
        if order == "qemu8":
            for at in addresses:
                add(gpa + at)
        for at in addresses:
            if order == "qemu9":
                add(gpa + at)
            if attributes & MR_EXTEND:
                extend(gpa + at, content[at:at + PAGE])
    return digest.digest()


# The machine.

def low_memory(memory):
    return 0x80000000 if memory >= 0xb0000000 else memory


def td_hob(found, memory):
    """All but the end of the list. What was added before the start is System (0), the rest Unaccepted (7)."""
    low = low_memory(memory)
    ram = [(start, size) for start, size in ((0, low), (FOUR_GIB, memory - low)) if size]
    added = sorted((gpa, gpa + size) for _, _, gpa, size, kind, _ in found if kind in (TD_HOB, TEMP_MEM))
    for gpa, end in added:
        require(any(start <= gpa and end <= start + size for start, size in ram), "memory there")
    ranges = []
    for start, size in ram:
        at = start
        for gpa, end in added:
            if start <= gpa < start + size:
                if at < gpa:
                    ranges.append((at, gpa - at, 7))
                ranges.append((gpa, end - gpa, 0))
                at = end
        if at < start + size:
            ranges.append((at, start + size - at, 7))
    base, room = next((gpa, size) for _, _, gpa, size, kind, _ in found if kind == TD_HOB)
    length = 56 + 48 * len(ranges) + 8
    require(length <= room, "room for the list")
    # Handoff: version 9, boot mode 0, four limits that are left open, the end of the list.
    hob = struct.pack("<HHIIIQQQQQ", 1, 56, 0, 9, 0, 0, 0, 0, 0, base + length)
    for start, size, resource in ranges:
        hob += struct.pack("<HHI16xIIQQ", 3, 48, 0, resource, 7, start, size)
    return hob


def configuration(image, found):
    for offset, raw, _, _, kind, _ in found:
        if kind == CFV:
            return image[offset:offset + raw]
    raise Refused("no configuration volume")


# The kernel.

def fill_in(kernel, append, initrd_size, memory):
    """What QEMU up to 10.1 writes into the setup header (boot.rst, "Details of Header Fields", for the meaning of the fields)."""
    kernel = bytearray(kernel)
    require(kernel[0x202:0x206] == b"HdrS", "boot protocol")
    (protocol,) = struct.unpack_from("<H", kernel, 0x206)
    require(protocol >= 0x203 and kernel[0x211] & 1, "loaded high")
    require("vga=" not in append, "vga=")
    (xloadflags,) = struct.unpack_from("<H", kernel, 0x236)
    highest = struct.unpack_from("<I", kernel, 0x22c)[0]
    if protocol >= 0x20c and xloadflags & 2:
        highest = 0xffffffff
    # The last 160 KiB of low memory are kept for ACPI tables.
    highest = min(highest, low_memory(memory) - 0x28000 - 1)
    struct.pack_into("<I", kernel, 0x228, 0x20000)
    kernel[0x210] = 0xb0
    kernel[0x211] |= 0x80
    struct.pack_into("<H", kernel, 0x224, 0x20000 - 0x10000 - 0x200)
    if initrd_size:
        require(initrd_size < highest, "room for the initrd")
        struct.pack_into("<II", kernel, 0x218, (highest - initrd_size) & ~0xfff, initrd_size)
    return bytes(kernel)


def authenticode(image):
    (pe,) = struct.unpack_from("<I", image, 0x3c)
    require(image[:2] == b"MZ" and image[pe:pe + 4] == b"PE\0\0", "PE")
    (count,) = struct.unpack_from("<H", image, pe + 6)
    (optional_size,) = struct.unpack_from("<H", image, pe + 20)
    optional = pe + 24
    (magic,) = struct.unpack_from("<H", image, optional)
    require(magic == 0x20b, "PE32+")
    (headers,) = struct.unpack_from("<I", image, optional + 60)
    (directories,) = struct.unpack_from("<I", image, optional + 108)
    checksum, security = optional + 64, optional + 112 + 4 * 8
    signature = 0
    digest = hashlib.sha384(image[:checksum])
    if directories > 4:
        (signature,) = struct.unpack_from("<I", image, security + 4)
        digest.update(image[checksum + 4:security])
        digest.update(image[security + 8:headers])
    else:
        digest.update(image[checksum + 4:headers])
    hashed = headers
    table = [struct.unpack_from("<II", image, optional + optional_size + 40 * n + 16)[::-1] for n in range(count)]
    for start, size in sorted(table):
        digest.update(image[start:start + size])
        hashed += size
    # Step 13 and 14: what is behind the sections, without the signatures. No padding: firmware hashes what is there.
    digest.update(image[hashed:len(image) - signature])
    return digest.digest()


# What virt-firmware says.

def check_sections(path, image, found):
    vector = dump.OvmfResetVector(image)
    entries = [entry for entry in vector if isinstance(entry, dump.OvmfGuidListEntry) and entry.guid.bytes_le == TDX_METADATA]
    theirs = [(r.filebase, r.filesize, r.membase, r.memsize, r.typeid, r.flags)
              for r in entries[0] if isinstance(r, dump.OvmfMemoryRange)]
    if theirs != found:
        sys.exit(f"{path}: virt-firmware reads the sections {theirs}, expected {found}")


def check_authenticode(path, image, digest):
    pe = pefile.PE(data=image, fast_load=True)
    end = pe.OPTIONAL_HEADER.SizeOfHeaders
    for section in sorted(pe.sections, key=lambda s: s.PointerToRawData):
        if section.PointerToRawData != end:
            return False
        end += section.SizeOfRawData
    # It pads to eight bytes, as one does who signs. Firmware does not.
    if len(image) % 8:
        return False
    theirs = pesign.pe_authenticode_hash(pe, "sha384")
    if theirs != digest:
        sys.exit(f"{path}: Authenticode digest of virt-firmware {theirs.hex()}, expected {digest.hex()}")
    return True


# A launch.

def load_options(append, initrd, edk2):
    if not initrd:
        return append
    return "initrd=initrd " + append if edk2 == "202508" else append + " initrd=initrd"


def read(path):
    with open(path, "rb") as file:
        return file.read()


def firmware_of(launch, result):
    image = read(launch["firmware"])
    found = sections(image)
    if pesign:
        check_sections(launch["firmware"], image, found)
        result["virt-firmware"] += 1
    result["mr_td"] = mrtd(image, found, launch["order"]).hex()
    for name, part in (("td_hob", lambda: td_hob(found, launch["memory"] << 20)), ("configuration", lambda: configuration(image, found))):
        try:
            result[name] = sha384(part()).hex()
        except Refused:
            pass


def boot_of(launch, result):
    kernel = read(launch["kernel"])
    initrd = read(launch["initrd"]) if launch["initrd"] else b""
    append, edk2 = launch["append"], launch["edk2"]
    if launch["filled_in"]:
        kernel = fill_in(kernel, append, len(initrd), launch["memory"] << 20)
    digest = authenticode(kernel)
    if pesign and check_authenticode(launch["kernel"], kernel, digest):
        result["virt-firmware"] += 1
    events = [digest, sha384(b"Calling EFI Application from Boot Option")]
    if edk2 != "before-202411":
        events.append(sha384(bytes(4)))
    events += [sha384(b"Exit Boot Services Invocation"), sha384(b"Exit Boot Services Returned with Success")]
    result["rtmr_1"] = replay(events).hex()
    options = load_options(append, initrd, edk2)
    events = [sha384((options + "\0").encode("utf-16-le"))] if options else []
    if initrd:
        events.append(sha384(initrd))
    result["rtmr_2"] = replay(events).hex()


def main():
    logging.disable(logging.CRITICAL)
    for launch in json.loads(read(sys.argv[1])):
        names = ("mr_td", "td_hob", "configuration", "rtmr_1", "rtmr_2")
        result = {**dict.fromkeys(names, "refused"), "virt-firmware": 0}
        for part in (firmware_of, boot_of):
            try:
                part(launch, result)
            except Refused:
                pass
        print(json.dumps(result))


main()
