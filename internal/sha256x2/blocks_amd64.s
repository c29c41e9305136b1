// The round follows crypto/sha256's for the SHA extensions. Its SHA256RNDS2 takes four
// cycles and can begin every two, so a second, independent stream of blocks comes for
// almost nothing.

#include "textflag.h"

// func cpuid(leaf, sub uint32) (ax, bx, cx, dx uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-24
	MOVL leaf+0(FP), AX
	MOVL sub+4(FP), CX
	CPUID
	MOVL AX, ax+8(FP)
	MOVL BX, bx+12(FP)
	MOVL CX, cx+16(FP)
	MOVL DX, dx+20(FP)
	RET

// Of a stream, s and t are its state as SHA256RNDS2 wants it (ABEF and CDGH), and four
// registers are its message schedule. LOAD puts four words of a block into one of them.
#define LOAD(from, off, w) \
	MOVOU  off(from), w; \
	PSHUFB X14, w

// ROUNDS does four rounds with the words w; their constants are at off.
#define ROUNDS(w, off, s, t) \
	MOVO        w, X0;        \
	PADDD       off(AX), X0;  \
	SHA256RNDS2 X0, s, t;     \
	PSHUFD      $0x0e, X0, X0; \
	SHA256RNDS2 X0, t, s

// EXTEND makes the next four words from the last sixteen; before them, SHA256MSG1 was
// done with next.
#define EXTEND(w, prev, next) \
	MOVO       w, X13;        \
	PALIGNR    $4, prev, X13; \
	PADDD      X13, next;     \
	SHA256MSG2 w, next

// The rounds of both streams, four at a time: 0 to 3; 4 to 11; 12 to 15; 16 to 51; 52 to
// 59. The last four need ROUNDS only.
#define FIRST(w, from, s, t) \
	LOAD(from, 0, w); \
	ROUNDS(w, 0, s, t)

#define EARLY(w, prev, from, off, s, t) \
	LOAD(from, off, w);   \
	ROUNDS(w, off, s, t); \
	SHA256MSG1 w, prev

#define FULL(w, prev, next, off, s, t) \
	ROUNDS(w, off, s, t);  \
	EXTEND(w, prev, next); \
	SHA256MSG1 w, prev

#define LATE(w, prev, next, off, s, t) \
	ROUNDS(w, off, s, t); \
	EXTEND(w, prev, next)

// READ and WRITE move a state from and to memory.
#define READ(from, s, t) \
	MOVOU   (from), s;    \
	MOVOU   16(from), t;  \
	PSHUFD  $0xb1, s, s;  \
	PSHUFD  $0x1b, t, t;  \
	MOVO    s, X13;       \
	PALIGNR $8, t, s;     \
	PBLENDW $0xf0, X13, t

#define WRITE(to, s, t) \
	PSHUFD  $0x1b, s, s;  \
	PSHUFD  $0xb1, t, t;  \
	MOVO    s, X13;       \
	PBLENDW $0xf0, t, s;  \
	PALIGNR $8, X13, t;   \
	MOVOU   s, (to);      \
	MOVOU   t, 16(to)

// ADD adds what off(SP) holds.
#define ADD(off, s) \
	MOVOU off(SP), X13; \
	PADDD X13, s

// func blocks(a, b *State, p, q *byte, n int)
TEXT ·blocks(SB), NOSPLIT, $64-40
	MOVQ  a+0(FP), DI
	MOVQ  b+8(FP), R8
	MOVQ  p+16(FP), SI
	MOVQ  q+24(FP), BX
	MOVQ  n+32(FP), DX
	LEAQ  k<>+0(SB), AX
	MOVOU flip<>+0(SB), X14
	READ(DI, X1, X2)
	READ(R8, X7, X8)

block:
	MOVOU X1, 0(SP)
	MOVOU X2, 16(SP)
	MOVOU X7, 32(SP)
	MOVOU X8, 48(SP)

	FIRST(X3, SI, X1, X2)
	FIRST(X9, BX, X7, X8)
	EARLY(X4, X3, SI, 16, X1, X2)
	EARLY(X10, X9, BX, 16, X7, X8)
	EARLY(X5, X4, SI, 32, X1, X2)
	EARLY(X11, X10, BX, 32, X7, X8)
	LOAD(SI, 48, X6)
	FULL(X6, X5, X3, 48, X1, X2)
	LOAD(BX, 48, X12)
	FULL(X12, X11, X9, 48, X7, X8)
	FULL(X3, X6, X4, 64, X1, X2)
	FULL(X9, X12, X10, 64, X7, X8)
	FULL(X4, X3, X5, 80, X1, X2)
	FULL(X10, X9, X11, 80, X7, X8)
	FULL(X5, X4, X6, 96, X1, X2)
	FULL(X11, X10, X12, 96, X7, X8)
	FULL(X6, X5, X3, 112, X1, X2)
	FULL(X12, X11, X9, 112, X7, X8)
	FULL(X3, X6, X4, 128, X1, X2)
	FULL(X9, X12, X10, 128, X7, X8)
	FULL(X4, X3, X5, 144, X1, X2)
	FULL(X10, X9, X11, 144, X7, X8)
	FULL(X5, X4, X6, 160, X1, X2)
	FULL(X11, X10, X12, 160, X7, X8)
	FULL(X6, X5, X3, 176, X1, X2)
	FULL(X12, X11, X9, 176, X7, X8)
	FULL(X3, X6, X4, 192, X1, X2)
	FULL(X9, X12, X10, 192, X7, X8)
	LATE(X4, X3, X5, 208, X1, X2)
	LATE(X10, X9, X11, 208, X7, X8)
	LATE(X5, X4, X6, 224, X1, X2)
	LATE(X11, X10, X12, 224, X7, X8)
	ROUNDS(X6, 240, X1, X2)
	ROUNDS(X12, 240, X7, X8)

	ADD(0, X1)
	ADD(16, X2)
	ADD(32, X7)
	ADD(48, X8)
	ADDQ $64, SI
	ADDQ $64, BX
	DECQ DX
	JNZ  block

	WRITE(DI, X1, X2)
	WRITE(R8, X7, X8)
	RET

// The bytes of four words, turned round.
DATA flip<>+0(SB)/8, $0x0405060700010203
DATA flip<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL flip<>(SB), RODATA|NOPTR, $16

// The constants of FIPS 180-4, section 4.2.2.
DATA k<>+0(SB)/8, $0x71374491428a2f98
DATA k<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA k<>+16(SB)/8, $0x59f111f13956c25b
DATA k<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA k<>+32(SB)/8, $0x12835b01d807aa98
DATA k<>+40(SB)/8, $0x550c7dc3243185be
DATA k<>+48(SB)/8, $0x80deb1fe72be5d74
DATA k<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA k<>+64(SB)/8, $0xefbe4786e49b69c1
DATA k<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA k<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA k<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA k<>+96(SB)/8, $0xa831c66d983e5152
DATA k<>+104(SB)/8, $0xbf597fc7b00327c8
DATA k<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA k<>+120(SB)/8, $0x1429296706ca6351
DATA k<>+128(SB)/8, $0x2e1b213827b70a85
DATA k<>+136(SB)/8, $0x53380d134d2c6dfc
DATA k<>+144(SB)/8, $0x766a0abb650a7354
DATA k<>+152(SB)/8, $0x92722c8581c2c92e
DATA k<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA k<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA k<>+176(SB)/8, $0xd6990624d192e819
DATA k<>+184(SB)/8, $0x106aa070f40e3585
DATA k<>+192(SB)/8, $0x1e376c0819a4c116
DATA k<>+200(SB)/8, $0x34b0bcb52748774c
DATA k<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA k<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA k<>+224(SB)/8, $0x78a5636f748f82ee
DATA k<>+232(SB)/8, $0x8cc7020884c87814
DATA k<>+240(SB)/8, $0xa4506ceb90befffa
DATA k<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL k<>(SB), RODATA|NOPTR, $256
