# The body of a Dubbo call: a row of values, serialized with Hessian 2 or with fastjson2's JSONB.
#
# A walk goes over it from value to value and reads the few that routing wants. Every step goes over a byte at
# least, so a walk ends within the bytes at hand. What is nested is kept on a stack of the walk's own, as a count of
# values, or as values or a map's pairs up to an end mark.

cdef enum:
    WALK_DEPTH = 4096          # about where the recursion of a Java caller ends
    WALK_CLASSES = 256
    UNTIL_END = -1
    MAP_KEY = -2
    MAP_VALUE = -3

cdef struct Walk:
    const uint8_t *p            # the frame
    uint32_t at
    uint32_t end                # of the bytes at hand that may be looked at
    uint32_t whole              # end of what is being read, be it at hand or not
    int outcome                 # FRAME_OK until something is missing or wrong; from then on everything reads as 0
    bint json                   # fastjson2's JSONB, else Hessian 2
    uint32_t depth
    uint32_t classes
    int32_t stack[4096]
    int32_t fields[256]         # Hessian 2: of the classes defined so far


cdef bint walk_start(Walk *w, const uint8_t *p, uint32_t n, const Frame *f) noexcept nogil:
    """False: the serialization is none that can be read."""
    w.p = p
    w.at = DUBBO_HEAD
    w.end = min(n, f.front)
    w.whole = <uint32_t>f.length
    w.outcome = FRAME_OK
    w.json = f.serialization == FASTJSON2
    w.depth = 0
    w.classes = 0
    return f.serialization == HESSIAN2 or f.serialization == FASTJSON2


cdef int walk_outcome(const Walk *w, const Frame *f) noexcept nogil:
    if w.outcome == FRAME_MORE and w.end == f.front:
        return BAD_FRONT_LONG
    return w.outcome


cdef inline void walk_refuse(Walk *w, int reason) noexcept nogil:
    if w.outcome == FRAME_OK:
        w.outcome = reason


cdef inline bint walk_over(Walk *w, uint32_t n) noexcept nogil:
    """Goes over n bytes, or says why not."""
    if n <= w.end - w.at and n <= w.whole - w.at and w.outcome == FRAME_OK:
        w.at += n
        return True
    walk_refuse(w, BAD_FRONT if n > w.whole - w.at else FRAME_MORE)
    return False


cdef inline uint8_t walk_byte(Walk *w) noexcept nogil:
    return w.p[w.at - 1] if walk_over(w, 1) else 0


cdef inline uint32_t walk_be16(Walk *w) noexcept nogil:
    return load_be16(w.p + w.at - 2) if walk_over(w, 2) else 0


cdef inline uint32_t walk_be32(Walk *w) noexcept nogil:
    return load_be32(w.p + w.at - 4) if walk_over(w, 4) else 0


cdef inline uint8_t walk_peek(Walk *w) noexcept nogil:
    cdef uint8_t c = walk_byte(w)
    if w.outcome == FRAME_OK:
        w.at -= 1
    return c


cdef inline void walk_expect(Walk *w, int32_t what) noexcept nogil:
    """That many values are to be gone over next, or UNTIL_END, or a map from MAP_KEY on."""
    if what == 0 or w.outcome != FRAME_OK:
        return
    if w.depth == WALK_DEPTH:
        walk_refuse(w, BAD_FRONT)
        return
    w.stack[w.depth] = what
    w.depth += 1


cdef inline void walk_expect_count(Walk *w, int32_t count) noexcept nogil:
    if count < 0:
        walk_refuse(w, BAD_FRONT)
    else:
        walk_expect(w, count)


cdef void walk_values(Walk *w, int32_t count) noexcept nogil:
    """Goes over that many values, however they are nested."""
    cdef int32_t *top
    walk_expect(w, count)
    while w.depth and w.outcome == FRAME_OK:
        top = &w.stack[w.depth - 1]
        if top[0] > 0:
            top[0] -= 1
            if top[0] == 0:         # before what is in the last value: so a linked list needs no depth
                w.depth -= 1
        elif walk_at_end(w) and top[0] != MAP_VALUE:
            walk_over(w, 1)
            w.depth -= 1
            continue
        elif top[0] != UNTIL_END:
            top[0] = MAP_VALUE if top[0] == MAP_KEY else MAP_KEY
        if w.json:
            jsonb_step(w)
        else:
            hessian_step(w)


cdef inline bint walk_at_end(Walk *w) noexcept nogil:
    return walk_peek(w) == (0xa5 if w.json else c"Z")


# -- Hessian 2 (http://hessian.caucho.com/doc/hessian-serialization.html) --------------------------------------------

cdef extern from *:
    """
    /* Values of a fixed size, by their first byte: 1 + the bytes that come after it. */
    static const unsigned char fs_hessian_fixed[256] = {
        ['F'] = 1, ['N'] = 1, ['T'] = 1,
        ['D'] = 9, ['J'] = 9, ['L'] = 9, ['I'] = 5, ['K'] = 5, ['Y'] = 5,
        [0x5b] = 1, [0x5c] = 1, [0x5d] = 2, [0x5e] = 3, [0x5f] = 5,                         /* doubles */
        [0x80 ... 0xbf] = 1, [0xc0 ... 0xcf] = 2, [0xd0 ... 0xd7] = 3,                      /* ints */
        [0xd8 ... 0xef] = 1, [0xf0 ... 0xff] = 2, [0x38 ... 0x3f] = 3,                      /* longs */
    };
    """
    const uint8_t fs_hessian_fixed[256]


cdef int32_t hessian_int(Walk *w) noexcept nogil:
    cdef int32_t lead = walk_byte(w)
    if 0x80 <= lead <= 0xbf:
        return lead - 0x90
    if 0xc0 <= lead <= 0xcf:
        return (lead - 0xc8) * 0x100 + walk_byte(w)
    if 0xd0 <= lead <= 0xd7:
        return (lead - 0xd4) * 0x10000 + <int32_t>walk_be16(w)
    if lead == c"I":
        return <int32_t>walk_be32(w)
    walk_refuse(w, BAD_FRONT)
    return 0


cdef inline uint32_t hessian_text_start(Walk *w, bint *last) noexcept nogil:
    """UTF-16 units of the string, or of its chunk, that begins here; whether it is the last chunk."""
    cdef uint32_t lead = walk_byte(w)
    last[0] = lead != c"R"
    if lead <= 0x1f:
        return lead
    if 0x30 <= lead <= 0x33:
        return (lead - 0x30) * 0x100 + walk_byte(w)
    if lead == c"S" or lead == c"R":
        return walk_be16(w)
    walk_refuse(w, BAD_FRONT)
    return 0


cdef void hessian_units(Walk *w, uint32_t units) noexcept nogil:
    """Goes over text in UTF-8. Java writes each half of a surrogate pair by itself, others the pair as four bytes."""
    cdef uint8_t c
    while units and w.outcome == FRAME_OK:
        while units >= 8 and w.at + 8 <= w.end and load_be64(w.p + w.at) & 0x8080808080808080U == 0:
            w.at += 8               # ASCII, most of what there is
            units -= 8
        if units == 0:
            return
        c = walk_byte(w)
        units -= 1
        if c < 0x80:
            pass
        elif 0xc0 <= c <= 0xdf:
            walk_over(w, 1)
        elif 0xe0 <= c <= 0xef:
            walk_over(w, 2)
        elif 0xf0 <= c <= 0xf7 and units:
            walk_over(w, 3)
            units -= 1
        else:
            walk_refuse(w, BAD_FRONT)


cdef Span hessian_text(Walk *w) noexcept nogil:
    """A string, which must be in one piece, or null."""
    cdef Span text
    cdef uint32_t units
    cdef bint last
    text.start = w.at
    text.length = 0
    if walk_peek(w) == c"N":
        walk_over(w, 1)
        return text
    units = hessian_text_start(w, &last)
    if not last:                    # 32,767 units at least
        walk_refuse(w, BAD_NAME)
    text.start = w.at
    hessian_units(w, units)
    text.length = w.at - text.start
    return text


cdef void hessian_string(Walk *w) noexcept nogil:
    cdef uint32_t units
    cdef bint last = False
    while not last and w.outcome == FRAME_OK:
        units = hessian_text_start(w, &last)
        hessian_units(w, units)


cdef void hessian_binary(Walk *w) noexcept nogil:
    cdef uint32_t lead = c"A"       # a chunk that is not the last
    while lead == c"A":
        lead = walk_byte(w)
        if 0x20 <= lead <= 0x2f:
            walk_over(w, lead - 0x20)
        elif 0x34 <= lead <= 0x37:
            walk_over(w, (lead - 0x34) * 0x100 + walk_byte(w))
        elif lead == c"A" or lead == c"B":
            walk_over(w, walk_be16(w))
        else:
            walk_refuse(w, BAD_FRONT)


cdef void hessian_type(Walk *w) noexcept nogil:
    """The name of a list's or a map's type, or the number of an earlier one."""
    if 0x80 <= walk_peek(w) <= 0xd7 or walk_peek(w) == c"I":
        hessian_int(w)
    else:
        hessian_string(w)


cdef void hessian_class(Walk *w) noexcept nogil:
    """A class and the names of its fields; the value comes after it."""
    cdef int32_t count
    cdef int32_t _
    hessian_string(w)
    count = hessian_int(w)
    if count < 0 or w.classes == WALK_CLASSES:
        walk_refuse(w, BAD_FRONT)
        return
    w.fields[w.classes] = count
    w.classes += 1
    for _ in range(count):
        if w.outcome != FRAME_OK:
            return
        hessian_string(w)
    walk_expect(w, 1)


cdef void hessian_object(Walk *w, int32_t number) noexcept nogil:
    if number < 0 or number >= <int32_t>w.classes:
        walk_refuse(w, BAD_FRONT)
    else:
        walk_expect(w, w.fields[number])


cdef void hessian_step(Walk *w) noexcept nogil:
    """Goes over a value, but of one that has others in it only up to those, which it leaves on the stack."""
    cdef uint8_t lead = walk_peek(w)
    if lead <= 0x1f or 0x30 <= lead <= 0x33 or lead == c"S" or lead == c"R":
        hessian_string(w)
        return
    if lead <= 0x37 or lead == c"A" or lead == c"B":
        hessian_binary(w)
        return
    walk_over(w, 1)
    if fs_hessian_fixed[lead]:
        walk_over(w, fs_hessian_fixed[lead] - 1)
    elif lead == c"C":
        hessian_class(w)
    elif lead == c"O":
        hessian_object(w, hessian_int(w))
    elif 0x60 <= lead <= 0x6f:
        hessian_object(w, lead - 0x60)
    elif lead == c"Q":              # a reference to an earlier value
        hessian_int(w)
    elif lead == c"H":
        walk_expect(w, MAP_KEY)
    elif lead == c"M":
        hessian_type(w)
        walk_expect(w, MAP_KEY)
    elif lead == c"W":
        walk_expect(w, UNTIL_END)
    elif lead == c"U":
        hessian_type(w)
        walk_expect(w, UNTIL_END)
    elif lead == c"X":
        walk_expect_count(w, hessian_int(w))
    elif lead == c"V":
        hessian_type(w)
        walk_expect_count(w, hessian_int(w))
    elif 0x70 <= lead <= 0x77:
        hessian_type(w)
        walk_expect(w, lead - 0x70)
    elif 0x78 <= lead <= 0x7f:
        walk_expect(w, lead - 0x78)
    else:
        walk_refuse(w, BAD_FRONT)


# -- JSONB (fastjson2: JSONB.Constants) -----------------------------------------------------------------------------

cdef extern from *:
    """
    /* By a value's first byte: 1 + the bytes of a fixed size after it, and how many values come after those. */
    static const struct { unsigned char fixed, values; } fs_jsonb[256] = {
        [0xaf ... 0xb3] = {1, 0},                                               /* null, booleans, doubles 0 and 1 */
        [0x00 ... 0x2f] = {1, 0}, [0xf0 ... 0xff] = {1, 0}, [0x30 ... 0x3f] = {2, 0}, [0x40 ... 0x47] = {3, 0},
        [0x48] = {5, 0},                                                        /* ints */
        [0xd8 ... 0xef] = {1, 0}, [0xc8 ... 0xd7] = {2, 0}, [0xc0 ... 0xc7] = {3, 0}, [0xbf] = {5, 0},
        [0xbe] = {9, 0},                                                        /* longs */
        [0xbd] = {2, 0}, [0xbc] = {3, 0}, [0xb7] = {5, 0}, [0xb5] = {9, 0},     /* byte, short, float, double */
        [0xb4] = {1, 1}, [0xb6] = {1, 1}, [0xb8] = {1, 1}, [0xba] = {1, 1},     /* numbers written as an int or long */
        [0xb9] = {1, 2},                                                        /* decimal: scale, unscaled value */
        [0x90] = {1, 1}, [0x93] = {1, 1},                                       /* char, reference */
        [0xa9] = {5, 0}, [0xac ... 0xad] = {5, 0}, [0xab] = {9, 0},             /* date; seconds, minutes, millis */
        [0xa7] = {4, 1}, [0xa8] = {8, 1}, [0xaa] = {8, 2},                      /* with nanoseconds, with a zone */
        [0xae] = {1, 2},                                                        /* seconds, nanoseconds */
    };
    """
    cdef struct FsJsonb "":
        uint8_t fixed
        uint8_t values
    const FsJsonb fs_jsonb[256]


cdef inline bint is_jsonb_int(uint8_t lead) noexcept nogil:
    return lead <= 0x48 or lead >= 0xf0


cdef int32_t jsonb_int(Walk *w) noexcept nogil:
    cdef int32_t lead = walk_byte(w)
    if lead <= 0x2f:
        return lead
    if lead <= 0x3f:
        return (lead - 0x38) * 0x100 + walk_byte(w)
    if lead <= 0x47:
        return (lead - 0x44) * 0x10000 + <int32_t>walk_be16(w)
    if lead == 0x48:
        return <int32_t>walk_be32(w)
    if lead >= 0xf0:
        return lead - 0x100
    walk_refuse(w, BAD_FRONT)
    return 0


cdef uint32_t jsonb_length(Walk *w) noexcept nogil:
    cdef int32_t length = jsonb_int(w)
    if length < 0:
        walk_refuse(w, BAD_FRONT)
        return 0
    return length


cdef Span jsonb_text(Walk *w) noexcept nogil:
    """A string in ASCII or UTF-8, or null."""
    cdef Span text
    cdef uint32_t length = 0
    cdef uint8_t lead = walk_byte(w)
    if 0x49 <= lead <= 0x78:
        length = lead - 0x49
    elif lead == 0x79 or lead == 0x7a:
        length = jsonb_length(w)
    elif 0x7b <= lead <= 0x7e:      # UTF-16 or GB 18030
        walk_refuse(w, BAD_NAME)
    elif lead != 0xaf:
        walk_refuse(w, BAD_FRONT)
    text.start = w.at
    text.length = length
    walk_over(w, length)
    return text


cdef inline int32_t jsonb_name_values(Walk *w) noexcept nogil:
    """How many values make up a name: its number, or itself and the number that it gets."""
    cdef uint8_t lead = walk_peek(w)
    return 1 if is_jsonb_int(lead) or lead == 0x7f else 2


cdef void jsonb_step(Walk *w) noexcept nogil:
    """Goes over a value, but of one that has others in it only up to those, which it leaves on the stack."""
    cdef uint8_t lead = walk_byte(w)
    if fs_jsonb[lead].fixed:
        walk_over(w, fs_jsonb[lead].fixed - 1)
        walk_expect(w, fs_jsonb[lead].values)
    elif 0x49 <= lead <= 0x78:
        walk_over(w, lead - 0x49)
    elif 0x79 <= lead <= 0x7e or lead == 0x91 or lead == 0xbb:      # strings, bytes, big integer
        walk_over(w, jsonb_length(w))
    elif 0x94 <= lead <= 0xa3:
        walk_expect(w, lead - 0x94)
    elif lead == 0xa4:
        walk_expect(w, <int32_t>jsonb_length(w))
    elif lead == 0xa6:
        walk_expect(w, MAP_KEY)
    elif lead == 0x7f:              # the name of a field
        walk_expect(w, jsonb_name_values(w))
    elif lead == 0x92:              # the name of a type, then a value
        walk_expect(w, jsonb_name_values(w) + 1)
    else:
        walk_refuse(w, BAD_FRONT)


# -- either ------------------------------------------------------------------------------------------------------------

cdef void walk_into_item(Walk *w) noexcept nogil:
    """With fastjson2 each of the body's values is a JSONB message of its own, behind its length."""
    cdef uint32_t length = walk_be32(w)
    if length > w.whole - w.at:
        walk_refuse(w, BAD_FRONT)
    else:
        w.whole = w.at + length


cdef Span walk_item_text(Walk *w) noexcept nogil:
    """The next of the body's values, which is a string or null."""
    cdef Span text
    cdef uint32_t whole = w.whole
    if not w.json:
        return hessian_text(w)
    walk_into_item(w)
    text = jsonb_text(w)
    if w.at != w.whole:
        walk_refuse(w, BAD_FRONT)
    w.whole = whole
    return text


cdef inline Span walk_as_name(Walk *w, Span text) noexcept nogil:
    if w.outcome == FRAME_OK and is_name(w.p, text):
        return text
    walk_refuse(w, BAD_NAME)
    text.length = 0
    return text


cdef inline bint walk_at_text(Walk *w) noexcept nogil:
    cdef uint8_t lead = walk_peek(w)
    if w.json:
        return 0x49 <= lead <= 0x7a
    return lead <= 0x1f or 0x30 <= lead <= 0x33 or lead == c"S"


cdef inline Span walk_text(Walk *w) noexcept nogil:
    return jsonb_text(w) if w.json else hessian_text(w)


cdef bint walk_into_map(Walk *w) noexcept nogil:
    """Goes to a map's first key. False: there is no map."""
    cdef uint8_t lead = walk_byte(w)
    if w.json:
        if lead == 0x92:
            walk_values(w, jsonb_name_values(w))
            lead = walk_byte(w)
        if lead == 0xa6:
            return True
    elif lead == c"M":
        hessian_type(w)
        return True
    elif lead == c"H":
        return True
    if lead != (0xaf if w.json else c"N"):
        walk_refuse(w, BAD_FRONT)
    return False


cdef int32_t walk_milliseconds(Walk *w) noexcept nogil:
    """Goes over a value: a number, or its digits in a string; 0 if it is no such number."""
    cdef uint8_t lead = walk_peek(w)
    cdef Span digits
    cdef uint32_t i
    cdef int32_t number = 0
    if w.json and is_jsonb_int(lead):
        return jsonb_int(w)
    if not w.json and (0x80 <= lead <= 0xd7 or lead == c"I"):
        return hessian_int(w)
    if not walk_at_text(w):
        walk_values(w, 1)
        return 0
    digits = walk_text(w)
    if w.outcome != FRAME_OK or digits.length > 9:
        return 0
    for i in range(digits.start, digits.start + digits.length):
        if not c"0" <= w.p[i] <= c"9":
            return 0
        number = number * 10 + (w.p[i] - c"0")
    return number


cdef inline bint walk_is_text(const Walk *w, Span text, const char *other, uint32_t length) noexcept nogil:
    return w.outcome == FRAME_OK and text.length == length and memcmp(w.p + text.start, other, length) == 0


cdef void walk_attachments(Walk *w, Frame *f) noexcept nogil:
    cdef Span key
    if not walk_into_map(w):
        return
    while w.outcome == FRAME_OK and not walk_at_end(w):
        key.length = 0
        if walk_at_text(w):
            key = walk_text(w)
        else:
            walk_values(w, 1)
        if walk_is_text(w, key, b"group", 5):
            f.group = walk_as_name(w, walk_text(w))
        elif walk_is_text(w, key, b"timeout", 7):
            f.timeout_ms = walk_milliseconds(w)
        else:
            walk_values(w, 1)
