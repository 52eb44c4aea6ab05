/*
 * Checks that exceptions taken in user mode arrive as exactly the signal, si_code, si_addr, trap number, error code
 * and instruction pointer that Linux on a real x86-64 CPU gives. A monitor that runs the guest deprivileged has to
 * reproduce every one of these, and each check here is something such a monitor can plausibly get wrong.
 *
 *   signals [--skip NAME,NAME...]
 *
 * One line per check: "ok NAME ..." or "FAIL NAME expected ... got ...", "skip NAME", or "note NAME ..." for what
 * legitimately differs between machines. Last line: "signals ok" or "signals FAILED: N checks".
 *
 * The reference is hardware, not an emulator. QEMU's TCG (seen with 7.2) deviates in the checks listed in README.md.
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE 4096ul
/* Fixed low addresses: the output is the same on every run, and 32-bit code can live there. */
#define CODE 0x10000000ul
#define DATA 0x20000000ul
#define STACK 0x30000000ul
#define HOLE 0x40000000ul /* never mapped */
#define KERNEL_TEXT 0xffffffff81000000ul
#define DIRECT_MAP 0xffff888000000000ul
#define NON_CANONICAL 0x0100000000000000ul /* with four levels of page tables and with five */
#define VSYSCALL 0xffffffffff600000ul

enum { FLAG_CF = 1, FLAG_TF = 1 << 8, FLAG_IF = 1 << 9, FLAG_DF = 1 << 10, FLAG_IOPL = 3 << 12, FLAG_AC = 1 << 18, FLAG_ID = 1 << 21 };
enum { ERR_PRESENT = 1, ERR_WRITE = 2, ERR_USER = 4, ERR_FETCH = 16 };

struct seen {
	int sig, code;
	long trap, err;
	unsigned long addr, rip;
	char message[200];
};
static struct seen *seen; /* shared with the child that runs the check */
static int failures;
static const char *skip_list = "";

/* ---- what a child runs --------------------------------------------------------------------------------------- */

static void record_and_exit(int sig, siginfo_t *info, void *context)
{
	/* Linux keeps AC set in the handler; the C library is not written for that. */
	asm volatile("pushfq; andq $~0x40000,(%%rsp); popfq" ::: "memory", "cc");
	greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	seen->code = info->si_code;
	seen->addr = (unsigned long)info->si_addr;
	seen->trap = regs[REG_TRAPNO];
	seen->err = regs[REG_ERR];
	seen->rip = (unsigned long)regs[REG_RIP];
	seen->sig = sig;
	_exit(0);
}

static void handle(int sig, void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	sigaction(sig, &action, NULL);
}

static void handle_all(void (*handler)(int, siginfo_t *, void *))
{
	static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
		handle(signals[i], handler);
}

static void *map(unsigned long at, unsigned long size, int protection)
{
	void *p = mmap((void *)at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (p == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	memset(p, 0, size); /* so that the page is present and a later fault is about permission only */
	mprotect(p, size, protection);
	return p;
}

static void put_code(const void *bytes, size_t length)
{
	unsigned char *page = map(CODE, PAGE, PROT_READ | PROT_WRITE);
	memcpy(page, bytes, length);
	page[length] = 0xc3;
	mprotect(page, PAGE, PROT_READ | PROT_EXEC);
}

static void call_code(unsigned long argument)
{
	((void (*)(unsigned long))CODE)(argument);
}

/* Forks a child for one check, so that a check can wreck its registers, its stack or its mappings. */
static int in_child(void (*body)(const void *), const void *argument)
{
	memset(seen, 0, sizeof *seen);
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		static char alternate[65536];
		stack_t stack = { .ss_sp = alternate, .ss_size = sizeof alternate };
		sigaltstack(&stack, NULL);
		handle_all(record_and_exit);
		alarm(60); /* a check that hangs must not hang the guest; its status below says so */
		body(argument);
		_exit(0);
	}
	int status = 0;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

static int skipped(const char *name)
{
	size_t length = strlen(name);
	for (const char *at = skip_list; (at = strstr(at, name)) != NULL; at += length)
		if ((at == skip_list || at[-1] == ',') && (at[length] == ',' || at[length] == '\0')) {
			printf("skip %s\n", name);
			return 1;
		}
	return 0;
}

/* ---- checks that are one instruction and the signal it must give ----------------------------------------------- */

enum where { ZERO, RIP, ARGUMENT, ANY_ADDRESS };
struct check {
	const char *name, *code;
	size_t length;
	unsigned long argument; /* in rdi */
	int sig, si_code, trap;
	long err;
	enum where addr;
	int rip; /* offset of the reported instruction pointer in the code, or ANYWHERE, or TARGET: rip is the argument */
	uint32_t data[4]; /* placed at DATA */
};
enum { ANYWHERE = -1, TARGET = -2 };

#define CODE_BYTES(s) (s), sizeof(s) - 1
#define GP(name, bytes, at, err) { name, CODE_BYTES(bytes), DATA, SIGSEGV, SI_KERNEL, 13, err, ZERO, at, { 0 } }
#define UD(name, bytes) { name, CODE_BYTES(bytes), DATA, SIGILL, ILL_ILLOPN, 6, 0, RIP, 0, { 0 } }
#define PF(name, bytes, address, code, err) { name, CODE_BYTES(bytes), address, SIGSEGV, code, 14, err, ARGUMENT, 0, { 0 } }
#define JUMP(name, address, code, err) { name, CODE_BYTES("\xff\xe7"), address, SIGSEGV, code, 14, err, ARGUMENT, TARGET, { 0 } }
/* ldmxcsr [rdi]; movss xmm0,[rdi+4]; movss xmm1,[rdi+8]; then divss or mulss xmm0,xmm1 */
#define SSE_LOAD "\x0f\xae\x17\xf3\x0f\x10\x47\x04\xf3\x0f\x10\x4f\x08"
#define SSE(name, op, code, mxcsr, a, b) \
	{ name, CODE_BYTES(SSE_LOAD "\xf3\x0f" op "\xc1"), DATA, SIGFPE, code, 19, 0, RIP, 13, { mxcsr, a, b, 0 } }
/* fninit; fldcw [rdi]; fld dword [rdi+4]; fdiv dword [rdi+8]; fwait */
#define X87(name, code, cw, a, b) \
	{ name, CODE_BYTES("\xdb\xe3\xd9\x2f\xd9\x47\x04\xd8\x77\x08\x9b"), DATA, SIGFPE, code, 16, 0, RIP, 10, { cw, a, b, 0 } }

#define READ "\x48\x8b\x07"
#define WRITE "\x48\x89\x07"
#define ONE 0x3f800000u
#define THREE 0x40400000u
#define HUGE_F 0x7f000000u
#define TINY_F 0x00800000u
#define DENORMAL_F 0x00000001u

static const struct check checks[] = {
	/* Kernel addresses: Linux hides from user mode whether they are mapped, so the error code always says "present". */
	PF("read-kernel-text", READ, KERNEL_TEXT, SEGV_MAPERR, ERR_USER | ERR_PRESENT),
	PF("write-kernel-text", WRITE, KERNEL_TEXT, SEGV_MAPERR, ERR_USER | ERR_PRESENT | ERR_WRITE),
	PF("read-direct-map", READ, DIRECT_MAP, SEGV_MAPERR, ERR_USER | ERR_PRESENT),
	PF("read-hypervisor-hole", READ, 0xffff800000000000ul, SEGV_MAPERR, ERR_USER | ERR_PRESENT),
	PF("write-hypervisor-hole", WRITE, 0xffff800000001000ul, SEGV_MAPERR, ERR_USER | ERR_PRESENT | ERR_WRITE),
	PF("read-below-kernel-text", READ, 0xffffffff7e000000ul, SEGV_MAPERR, ERR_USER | ERR_PRESENT),
	PF("write-below-kernel-text", WRITE, 0xffffffff7e000000ul, SEGV_MAPERR, ERR_USER | ERR_PRESENT | ERR_WRITE),
	PF("read-cpu-entry-area", READ, 0xfffffe0000000000ul, SEGV_MAPERR, ERR_USER | ERR_PRESENT),
	PF("read-last-page", READ, 0xfffffffffffff000ul, SEGV_MAPERR, ERR_USER | ERR_PRESENT),
	JUMP("jump-kernel-text", KERNEL_TEXT, SEGV_MAPERR, ERR_USER | ERR_PRESENT | ERR_FETCH),
	JUMP("jump-hypervisor-hole", 0xffff800000000000ul, SEGV_MAPERR, ERR_USER | ERR_PRESENT | ERR_FETCH),

	/* User addresses. */
	PF("read-unmapped", READ, HOLE, SEGV_MAPERR, ERR_USER),
	PF("write-unmapped", WRITE, HOLE + 8, SEGV_MAPERR, ERR_USER | ERR_WRITE),
	PF("read-null", READ, 0, SEGV_MAPERR, ERR_USER),
	PF("write-read-only", WRITE, DATA + PAGE, SEGV_ACCERR, ERR_USER | ERR_WRITE | ERR_PRESENT),
	PF("write-code", WRITE, CODE + 64, SEGV_ACCERR, ERR_USER | ERR_WRITE | ERR_PRESENT),
	PF("read-no-access", READ, DATA + 2 * PAGE, SEGV_ACCERR, ERR_USER),
	JUMP("jump-no-execute", DATA, SEGV_ACCERR, ERR_USER | ERR_PRESENT | ERR_FETCH),
	JUMP("jump-unmapped", HOLE, SEGV_MAPERR, ERR_USER | ERR_FETCH),
	/* An access over a page boundary reports the page that is missing: add rdi,-4; mov rax,[rdi]. */
	{ "read-crossing", CODE_BYTES("\x48\x83\xef\x04\x48\x8b\x07"), DATA + 2 * PAGE, SIGSEGV, SEGV_ACCERR, 14, ERR_USER, ARGUMENT, 4, { 0 } },

	/* Non-canonical: #GP, or #SS when the base is rsp or rbp (push rbp; mov rbp,rdi; mov rax,[rbp]). No address is known. */
	{ "read-non-canonical", CODE_BYTES(READ), NON_CANONICAL, SIGSEGV, SI_KERNEL, 13, 0, ZERO, 0, { 0 } },
	{ "read-non-canonical-top", CODE_BYTES(READ), 0xfefffffffffffff0ul, SIGSEGV, SI_KERNEL, 13, 0, ZERO, 0, { 0 } },
	{ "stack-non-canonical", CODE_BYTES("\x55\x48\x89\xfd\x48\x8b\x45\x00"), NON_CANONICAL, SIGBUS, SI_KERNEL, 12, 0, ZERO, 4, { 0 } },
	/* AMD reports the target, Intel the jump. */
	{ "jump-non-canonical", CODE_BYTES("\xff\xe7"), NON_CANONICAL, SIGSEGV, SI_KERNEL, 13, 0, ZERO, ANYWHERE, { 0 } },

	/* Privileged instructions. */
	GP("cli", "\xfa", 0, 0),
	GP("sti", "\xfb", 0, 0),
	GP("hlt", "\xf4", 0, 0),
	GP("in-al-dx", "\xec", 0, 0),
	GP("in-al-imm", "\xe4\x60", 0, 0),
	GP("in-eax-dx", "\xed", 0, 0),
	GP("out-imm-al", "\xe6\x80", 0, 0),
	GP("out-dx-eax", "\xef", 0, 0),
	GP("insb", "\x6c", 0, 0),
	GP("outsb", "\x6e", 0, 0),
	GP("rdmsr", "\x0f\x32", 0, 0),
	GP("wrmsr", "\x0f\x30", 0, 0),
	GP("rdpmc", "\x0f\x33", 0, 0),
	GP("read-cr0", "\x0f\x20\xc0", 0, 0),
	GP("read-cr2", "\x0f\x20\xd0", 0, 0),
	GP("read-cr3", "\x0f\x20\xd8", 0, 0),
	GP("read-cr4", "\x0f\x20\xe0", 0, 0),
	GP("read-cr8", "\x44\x0f\x20\xc0", 0, 0),
	GP("write-cr0", "\x0f\x22\xc0", 0, 0),
	GP("write-cr3", "\x0f\x22\xd8", 0, 0),
	GP("write-cr4", "\x0f\x22\xe0", 0, 0),
	GP("read-dr0", "\x0f\x21\xc0", 0, 0),
	GP("read-dr7", "\x0f\x21\xf8", 0, 0),
	GP("write-dr7", "\x0f\x23\xf8", 0, 0),
	GP("clts", "\x0f\x06", 0, 0),
	GP("lmsw", "\x0f\x01\xf0", 0, 0),
	GP("lgdt", "\x0f\x01\x17", 0, 0),
	GP("lidt", "\x0f\x01\x1f", 0, 0),
	GP("lldt", "\x0f\x00\xd0", 0, 0),
	GP("ltr", "\x0f\x00\xd8", 0, 0),
	GP("invlpg", "\x0f\x01\x3f", 0, 0),
	GP("invd", "\x0f\x08", 0, 0),
	GP("wbinvd", "\x0f\x09", 0, 0),
	GP("swapgs", "\x0f\x01\xf8", 0, 0),
	GP("sysretq", "\x48\x0f\x07", 0, 0),
	GP("sysretl", "\x0f\x07", 0, 0),

	/* Segments: the error code is the selector. mov eax,SEL; mov ss/ds/es,eax. 0x10 and 0x18 are Linux's kernel segments. */
	GP("load-ss-kernel-code", "\xb8\x10\x00\x00\x00\x8e\xd0", 5, 0x10),
	GP("load-ss-kernel-data", "\xb8\x18\x00\x00\x00\x8e\xd0", 5, 0x18),
	GP("load-ss-null", "\x31\xc0\x8e\xd0", 2, 0),
	GP("load-ds-kernel-data", "\xb8\x18\x00\x00\x00\x8e\xd8", 5, 0x18),
	GP("load-ds-kernel-code", "\xb8\x10\x00\x00\x00\x8e\xd8", 5, 0x10),
	GP("load-es-tss", "\xb8\x43\x00\x00\x00\x8e\xc0", 5, 0x40),
	GP("load-es-past-gdt", "\xb8\x83\x00\x00\x00\x8e\xc0", 5, 0x80),
	/* mov rax,rsp; push 0x18; push rax; pushfq; push 0x10; push rdi; iretq */
	GP("iretq-to-kernel", "\x48\x89\xe0\x6a\x18\x50\x9c\x6a\x10\x57\x48\xcf", 10, 0x10),
	/* push 0x10; push rdi; retfq */
	GP("retfq-to-kernel", "\x6a\x10\x57\x48\xcb", 3, 0x10),

	/* Interrupt gates that user mode may not use: error code is vector * 8 + 2. */
	GP("int-0x01", "\xcd\x01", 0, 0x0a),
	GP("int-0x02", "\xcd\x02", 0, 0x12),
	GP("int-0x08", "\xcd\x08", 0, 0x42),
	GP("int-0x0d", "\xcd\x0d", 0, 0x6a),
	GP("int-0x0e", "\xcd\x0e", 0, 0x72),
	GP("int-0x20", "\xcd\x20", 0, 0x102),
	GP("int-0xff", "\xcd\xff", 0, 0x7fa),

	/* The three it may use. They are traps: rip is behind the instruction. */
	{ "int3", CODE_BYTES("\xcc"), DATA, SIGTRAP, SI_KERNEL, 3, 0, ZERO, 1, { 0 } },
	{ "int-0x03", CODE_BYTES("\xcd\x03"), DATA, SIGTRAP, SI_KERNEL, 3, 0, ZERO, 2, { 0 } },
	{ "int-0x04", CODE_BYTES("\xcd\x04"), DATA, SIGSEGV, SI_KERNEL, 4, 0, ZERO, 2, { 0 } },
	/* Bare hardware is behind the instruction here too, but AMD under nested KVM was seen to report the instruction itself. */
	{ "icebp", CODE_BYTES("\xf1"), DATA, SIGTRAP, TRAP_BRKPT, 1, 0, ANY_ADDRESS, ANYWHERE, { 0 } },

	/* Undefined. */
	UD("ud2", "\x0f\x0b"),
	UD("ud0", "\x0f\xff\xc0"),
	UD("push-es", "\x06"),
	UD("into", "\xce"),
	UD("lock-nop", "\xf0\x90"),
	UD("monitor", "\x0f\x01\xc8"),
	UD("mwait", "\x0f\x01\xc9"),
	UD("clac", "\x0f\x01\xca"),
	UD("stac", "\x0f\x01\xcb"),

	/* xor ecx,ecx; div ecx -- mov eax,INT_MIN; cdq; mov ecx,-1; idiv ecx */
	{ "divide-by-zero", CODE_BYTES("\x31\xc9\xf7\xf1"), DATA, SIGFPE, FPE_INTDIV, 0, 0, RIP, 2, { 0 } },
	{ "divide-overflow", CODE_BYTES("\xb8\x00\x00\x00\x80\x99\xb9\xff\xff\xff\xff\xf7\xf9"), DATA, SIGFPE, FPE_INTDIV, 0, 0, RIP, 11, { 0 } },

	/* pushfq; or dword [rsp],AC; popfq; mov eax,[rdi+1] */
	{ "alignment", CODE_BYTES("\x9c\x81\x0c\x24\x00\x00\x04\x00\x9d\x8b\x47\x01"), DATA, SIGBUS, BUS_ADRALN, 17, 0, ZERO, 9, { 0 } },

	X87("x87-divide", FPE_FLTDIV, 0x037b, ONE, 0),
	X87("x87-invalid", FPE_FLTINV, 0x037e, 0, 0),
	X87("x87-inexact", FPE_FLTRES, 0x035f, ONE, THREE),
	SSE("sse-divide", "\x5e", FPE_FLTDIV, 0x1d80, ONE, 0),
	SSE("sse-invalid", "\x5e", FPE_FLTINV, 0x1f00, 0, 0),
	SSE("sse-overflow", "\x59", FPE_FLTOVF, 0x1b80, HUGE_F, HUGE_F),
	SSE("sse-underflow", "\x59", FPE_FLTUND, 0x1780, TINY_F, TINY_F),
	SSE("sse-inexact", "\x5e", FPE_FLTRES, 0x0f80, ONE, THREE),
	SSE("sse-denormal", "\x59", FPE_FLTUND, 0x1e80, DENORMAL_F, ONE),
};

static void run_check(const void *argument)
{
	const struct check *check = argument;
	put_code(check->code, check->length);
	memcpy((void *)DATA, check->data, sizeof check->data);
	call_code(check->argument);
}

static void print_seen(const char *word, int sig, int code, long trap, long err, unsigned long addr, unsigned long rip)
{
	printf(" %ssig=%d code=%d trap=%ld err=%#lx addr=%#lx rip=%#lx", word, sig, code, trap, err, addr, rip);
}

static void signal_check(const struct check *check)
{
	if (skipped(check->name))
		return;
	map(DATA, PAGE, PROT_READ | PROT_WRITE);
	int status = in_child(run_check, check);
	unsigned long rip = check->rip == TARGET ? check->argument : CODE + (unsigned long)check->rip;
	unsigned long addr = check->addr == RIP ? rip : check->addr == ARGUMENT ? check->argument : 0;
	if (check->rip == ANYWHERE)
		rip = seen->rip;
	if (check->addr == ANY_ADDRESS)
		addr = seen->addr;
	int good = WIFEXITED(status) && seen->sig == check->sig && seen->code == check->si_code && seen->trap == check->trap &&
		   seen->err == check->err && seen->addr == addr && seen->rip == rip;
	printf("%s %s", good ? "ok" : "FAIL", check->name);
	if (!good) {
		failures++;
		print_seen("expected ", check->sig, check->si_code, check->trap, check->err, addr, rip);
		if (WIFSIGNALED(status))
			printf(" got killed by signal %d", WTERMSIG(status));
		else if (seen->sig == 0)
			printf(" got no signal");
		else
			print_seen("got ", seen->sig, seen->code, seen->trap, seen->err, seen->addr, seen->rip);
	} else {
		printf(" sig=%d code=%d", seen->sig, seen->code);
	}
	printf("\n");
}

/* ---- checks that are code ------------------------------------------------------------------------------------ */

#define EXPECT(condition, ...) \
	do { \
		if (!(condition)) { \
			snprintf(seen->message, sizeof seen->message, __VA_ARGS__); \
			_exit(1); \
		} \
	} while (0)

static unsigned long read_flags(void)
{
	unsigned long flags;
	asm volatile("pushfq; popq %0" : "=r"(flags));
	return flags;
}

static void write_flags(unsigned long flags)
{
	asm volatile("pushq %0; popfq" ::"r"(flags) : "cc", "memory");
}

/* Interrupts always look enabled in user mode, and popf quietly leaves IF and IOPL alone. */
static void check_flags(void)
{
	EXPECT((read_flags() & (FLAG_IF | FLAG_IOPL)) == FLAG_IF, "pushf %#lx, expected IF=1 IOPL=0", read_flags());
	write_flags((read_flags() & ~(unsigned long)FLAG_IF) | FLAG_IOPL);
	EXPECT((read_flags() & (FLAG_IF | FLAG_IOPL)) == FLAG_IF, "popf changed IF or IOPL: %#lx", read_flags());
	write_flags(read_flags() | FLAG_ID);
	EXPECT(read_flags() & FLAG_ID, "popf did not set ID");
	getppid();
	EXPECT(read_flags() & FLAG_ID, "a system call lost ID");
	write_flags(read_flags() & ~(unsigned long)FLAG_ID);
	EXPECT(!(read_flags() & FLAG_ID), "popf did not clear ID");
}

/* What the silent sensitive instructions say must be what a kernel at privilege level 0 made true for user mode. */
static void check_selectors(void)
{
	unsigned cs, ss, ds, es, value = 0;
	unsigned char zero;
	asm("mov %%cs,%0; mov %%ss,%1; mov %%ds,%2; mov %%es,%3" : "=r"(cs), "=r"(ss), "=r"(ds), "=r"(es));
	EXPECT(cs == 0x33 && ss == 0x2b && ds == 0 && es == 0, "cs=%#x ss=%#x ds=%#x es=%#x", cs, ss, ds, es);
	for (unsigned selector = 0x08; selector <= 0x18; selector += 8) {
		asm("lar %2,%0; setz %1" : "+r"(value), "=q"(zero) : "r"(selector));
		EXPECT(!zero, "lar %#x succeeded", selector);
		asm("lsl %2,%0; setz %1" : "+r"(value), "=q"(zero) : "r"(selector));
		EXPECT(!zero, "lsl %#x succeeded", selector);
		asm("verr %w1; setz %0" : "=q"(zero) : "r"(selector));
		EXPECT(!zero, "verr %#x succeeded", selector);
		asm("verw %w1; setz %0" : "=q"(zero) : "r"(selector));
		EXPECT(!zero, "verw %#x succeeded", selector);
	}
	asm("verw %w1; setz %0" : "=q"(zero) : "r"(0x2b));
	EXPECT(zero, "verw 0x2b failed");
	asm("lar %2,%0; setz %1" : "+r"(value), "=q"(zero) : "r"(0x2b));
	EXPECT(zero && (value & 0xf0ff00) == 0xc0f300, "lar 0x2b gave %#x", value);
	asm("lar %2,%0; setz %1" : "+r"(value), "=q"(zero) : "r"(0x33));
	EXPECT(zero && (value & 0xf0ff00) == 0xa0fb00, "lar 0x33 gave %#x", value);
	asm volatile("mov %0,%%ds; mov %0,%%es" ::"r"(0x2b));
	sched_yield();
	asm("mov %%ds,%0; mov %%es,%1" : "=r"(ds), "=r"(es));
	EXPECT(ds == 0x2b && es == 0x2b, "loaded 0x2b into ds and es, read back %#x %#x", ds, es);
}

/* Linux keeps the CPU number in the limit of a segment and in TSC_AUX, for the vDSO's getcpu. */
static void check_cpu_number(void)
{
	unsigned cpu, node, limit = 0, aux, a, b, c, d;
	unsigned char zero;
	cpu_set_t one;
	getcpu(&cpu, &node);
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof one, &one);
	syscall(SYS_getcpu, &cpu, &node, NULL);
	asm("lsl %2,%0; setz %1" : "+r"(limit), "=q"(zero) : "r"(0x7b));
	EXPECT(zero && limit == (cpu | node << 12), "lsl 0x7b gave %#x, expected %#x", limit, cpu | node << 12);
	if (__get_cpuid(0x80000001, &a, &b, &c, &d) && (d & 1u << 27)) {
		asm volatile("rdtscp" : "=c"(aux)::"eax", "edx");
		EXPECT(aux == limit, "rdtscp gave %#x, expected %#x", aux, limit);
	}
}

/* iretq is allowed when it stays in user mode: mov rax,rsp; push 0x2b; push rax; pushfq; push 0x33; lea rcx,[rip+3]; push rcx; iretq */
static void check_iretq(void)
{
	static const char code[] = "\x48\x89\xe0\x6a\x2b\x50\x9c\x6a\x33\x48\x8d\x0d\x03\x00\x00\x00\x51\x48\xcf";
	put_code(code, sizeof code - 1);
	for (int i = 0; i < 100; i++)
		call_code(0);
	EXPECT((read_flags() & FLAG_IF) != 0, "IF lost");
}

/* The 32-bit system call gate, from 64-bit code. */
static void check_int80(void)
{
	long result;
	asm volatile("int $0x80" : "=a"(result) : "a"(20 /* getpid */) : "memory", "r8", "r9", "r10", "r11");
	EXPECT(result == getpid(), "int $0x80 getpid gave %ld, expected %d", result, getpid());
}

/* 32-bit code in the same process: far return to CS 0x23, mov eax,20; int 0x80; far jump back to CS 0x33. */
static void check_compat(void)
{
	unsigned char code[] = { 0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xea, 0, 0, 0, 0, 0x33, 0, 0xc3 };
	uint32_t back = CODE + 14;
	memcpy(code + 8, &back, 4);
	put_code(code, sizeof code);
	map(STACK, PAGE, PROT_READ | PROT_WRITE);
	long result;
	/* Linux keeps only 32 bits of the registers there, so the stack must be low and rsp saved where compat code keeps it. */
	static unsigned long saved;
	asm volatile("movq %%rsp,%[saved]; movq %[top],%%rsp; leaq 1f(%%rip),%%rax; pushq %%rax; pushq $0x23; pushq %[code]; lretq\n"
		     "1: movq %[saved],%%rsp"
		     : "=a"(result), [saved] "+m"(saved)
		     : [top] "r"(STACK + PAGE - 64), [code] "r"(CODE)
		     : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
	EXPECT(result == getpid(), "32-bit getpid gave %ld, expected %d", result, getpid());
}

/* A local descriptor table entry: base and limit must hold. */
static void check_ldt(void)
{
	struct user_desc entry = { .entry_number = 0, .base_addr = DATA, .limit = 0xfff, .seg_32bit = 1, .useable = 1 };
	if (syscall(SYS_modify_ldt, 1, &entry, sizeof entry) != 0)
		return;
	*(uint32_t *)(DATA + 16) = 0x12345678;
	uint32_t value;
	asm volatile("mov %1,%%gs; movl %%gs:16,%0" : "=r"(value) : "r"(7));
	EXPECT(value == 0x12345678, "read through the LDT gave %#x", value);
	sched_yield();
	asm volatile("movl %%gs:16,%0" : "=r"(value));
	EXPECT(value == 0x12345678, "after sched_yield, read through the LDT gave %#x", value);
}

/* GS base is user mode's own, even when it points into the kernel half. */
static void check_gs_base(void)
{
	unsigned long base = 0, probe = 0xffff888000001000ul;
	EXPECT(syscall(SYS_arch_prctl, ARCH_SET_GS, DATA) == 0, "arch_prctl failed");
	*(volatile uint64_t *)(DATA + 8) = 0x1122334455667788ul;
	asm volatile("movq %%gs:8,%0" : "=r"(base));
	EXPECT(base == 0x1122334455667788ul, "gs:8 gave %#lx", base);
	if (!(getauxval(AT_HWCAP2) & 2)) /* FSGSBASE */
		return;
	asm volatile("wrgsbase %0" ::"r"(probe));
	for (int i = 0; i < 50; i++) {
		sched_yield();
		*(volatile char *)map(HOLE, PAGE, PROT_READ | PROT_WRITE) = 1; /* page faults with this base */
		asm volatile("rdgsbase %0" : "=r"(base));
		EXPECT(base == probe, "gs base became %#lx", base);
	}
	syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
	EXPECT(base == probe, "the kernel saw gs base %#lx", base);
}

/* Every general register and the flags, filled with patterns, around one instruction. rsp cannot take part. */
unsigned long before[15], after[15], flags_before, flags_after; /* not static: only assembly writes some of them */
extern char around_syscall_next[];
void around_ud2(void);
void around_syscall(void);
void around_spin(void);
#define SAVE_CALLEE "pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
#define RESTORE_CALLEE "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; popq %rbx\n"
#define EACH(op, array) \
	op(rax, 0, array) op(rbx, 1, array) op(rcx, 2, array) op(rdx, 3, array) op(rsi, 4, array) op(rdi, 5, array) op(rbp, 6, array) \
	op(r8, 7, array) op(r9, 8, array) op(r10, 9, array) op(r11, 10, array) op(r12, 11, array) op(r13, 12, array) \
	op(r14, 13, array) op(r15, 14, array)
#define LOAD(reg, n, array) "movq " #array "+8*" #n "(%rip),%" #reg "\n"
#define STORE(reg, n, array) "movq %" #reg "," #array "+8*" #n "(%rip)\n"
#define AROUND(name, body) \
	asm(".text\n.globl " name "\n" name ":\n" SAVE_CALLEE "pushq flags_before(%rip); popfq\n" EACH(LOAD, before) body \
	    EACH(STORE, after) "pushfq; popq flags_after(%rip); cld\n" RESTORE_CALLEE "ret\n")
AROUND("around_ud2", "ud2\n");
AROUND("around_syscall", "syscall\n.globl around_syscall_next\naround_syscall_next:\n");
/* Only rcx moves: an interrupt anywhere in here must leave the rest alone. */
AROUND("around_spin", "1: decq %rcx; jnz 1b\n");

static void fill(unsigned long seed)
{
	for (int i = 0; i < 15; i++)
		before[i] = 0x0101010101010101ul * (unsigned long)(i + 1) ^ seed;
	memset(after, 0, sizeof after);
	flags_before = FLAG_IF | 2 | FLAG_CF | FLAG_DF | (seed & 1 ? 0x894 : 0x40); /* OF SF AF PF, or ZF */
}

static volatile int signals_taken;
static void skip_ud2(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)info;
	((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
	signals_taken++;
	asm volatile("xor %%eax,%%eax; xor %%ecx,%%ecx; xor %%edx,%%edx; xor %%esi,%%esi; xor %%edi,%%edi; xor %%r8d,%%r8d;"
		     "xor %%r9d,%%r9d; xor %%r10d,%%r10d; xor %%r11d,%%r11d; xor %%r12d,%%r12d; xor %%r13d,%%r13d; xor %%r14d,%%r14d; xor %%r15d,%%r15d" ::
			     : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "cc");
}

static void check_sigreturn(void)
{
	handle(SIGILL, skip_ud2);
	for (unsigned long round = 0; round < 50; round++) {
		fill(round * 0x9e3779b97f4a7c15ul);
		around_ud2();
		for (int i = 0; i < 15; i++)
			EXPECT(after[i] == before[i], "register %d was %#lx, came back %#lx", i, before[i], after[i]);
		EXPECT(flags_after == flags_before, "flags were %#lx, came back %#lx", flags_before, flags_after);
	}
}

static void check_syscall_registers(void)
{
	for (unsigned long round = 0; round < 50; round++) {
		fill(round * 0x9e3779b97f4a7c15ul);
		before[0] = round & 1 ? SYS_getppid : SYS_sched_yield;
		around_syscall();
		for (int i = 1; i < 15; i++)
			if (i != 2 && i != 10)
				EXPECT(after[i] == before[i], "register %d was %#lx, came back %#lx", i, before[i], after[i]);
		EXPECT(after[2] == (unsigned long)around_syscall_next, "rcx is %#lx, expected the next instruction", after[2]);
		EXPECT(after[10] == flags_before, "r11 is %#lx, expected the flags %#lx", after[10], flags_before);
		EXPECT(flags_after == flags_before, "flags were %#lx, came back %#lx", flags_before, flags_after);
	}
}

static void count_signal(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)info;
	(void)context;
	signals_taken++;
}

/* Timer signals into a loop that keeps its state in registers. */
static void check_timer(void)
{
	struct itimerval every = { { 0, 5000 }, { 0, 5000 } }, never = { { 0, 0 }, { 0, 0 } };
	handle(SIGALRM, count_signal);
	alarm(0);
	setitimer(ITIMER_REAL, &every, NULL);
	for (unsigned long round = 0; round < 1000000 && signals_taken < 20; round++) {
		fill(round);
		before[2] = 200000;
		around_spin();
		for (int i = 0; i < 15; i++)
			EXPECT(after[i] == (i == 2 ? 0 : before[i]), "register %d was %#lx, came back %#lx", i, before[i], after[i]);
	}
	setitimer(ITIMER_REAL, &never, NULL);
	EXPECT(signals_taken >= 20, "only %d timer signals", signals_taken);
}

/* Single-stepping by TF: the addresses reported must be exactly these. */
extern char step_1[], step_2[], step_4[], step_5[], step_6[], step_7[], step_9[], step_10[], step_11[], step_12[], step_13[], step_14[];
void stepped(void *from, void *to);
asm(".text\n.globl stepped\nstepped: pushq %rbx; pushfq; orq $0x100,(%rsp); popfq\n"
    " nop\n"
    "step_1: movl $39,%eax\n"
    "step_2: syscall\n" /* TF is masked in the kernel; the first trap is after the instruction behind the syscall */
    "step_3: nop\n"
    "step_4: movl $3,%ecx\n"
    "step_5: rep movsb\n" /* one trap for each iteration */
    "step_6: movl %ss,%eax\n"
    "step_7: movl %eax,%ss\n" /* no trap directly behind a load of ss */
    "step_8: nop\n"
    "step_9: xorl %eax,%eax\n"
    "step_10: cpuid\n" /* intercepted by every VMM */
    "step_11: pushfq\n"
    "step_12: andq $~0x100,(%rsp)\n"
    "step_13: popfq\n" /* TF was still set when it began */
    "step_14: nop; popq %rbx; ret\n");

static unsigned long steps[64];
static volatile int step_count, step_bad_code;
static void record_step(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	unsigned long rip = (unsigned long)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	if (info->si_code != TRAP_TRACE || (unsigned long)info->si_addr != rip)
		step_bad_code = info->si_code;
	if (step_count < 64)
		steps[step_count] = rip;
	step_count++;
}

static void check_single_step(void)
{
	const char *expected[] = { step_1, step_2, step_4, step_5, step_5, step_5, step_6, step_7, step_9, step_10, step_11, step_12, step_13, step_14 };
	int count = sizeof expected / sizeof *expected;
	handle(SIGTRAP, record_step);
	stepped((void *)DATA, (void *)(DATA + 64));
	EXPECT(step_bad_code == 0, "si_code %d or si_addr wrong", step_bad_code);
	for (int i = 0; i < count && i < step_count; i++)
		EXPECT(steps[i] == (unsigned long)expected[i], "step %d at +%ld, expected +%ld", i, (long)steps[i] - (long)step_1,
		       (long)(expected[i] - step_1));
	EXPECT(step_count == count, "%d steps, expected %d", step_count, count);
}

/* The main stack grows down to its limit; beyond that the signal must still arrive, on the alternate stack. */
static __attribute__((noinline)) unsigned long recurse(unsigned long depth)
{
	volatile char frame[1024];
	frame[0] = (char)depth;
	return depth == ~0ul ? 0 : recurse(depth + 1) + (unsigned long)frame[0];
}

static void stack_overflow(const void *unused)
{
	(void)unused;
	struct rlimit limit = { 256 * 1024, 256 * 1024 };
	setrlimit(RLIMIT_STACK, &limit);
	recurse(0);
}

/* The kernel's own accesses to bad user addresses end in EFAULT, nothing else. */
static void check_efault(void)
{
	static const unsigned long bad[] = { HOLE, KERNEL_TEXT, DIRECT_MAP, NON_CANONICAL, DATA + 2 * PAGE, 0xfffffffffffffff8ul };
	int ends[2];
	EXPECT(pipe(ends) == 0, "pipe failed");
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		errno = 0;
		EXPECT(syscall(SYS_write, ends[1], bad[i], 8) == -1 && errno == EFAULT, "write from %#lx: errno %d", bad[i], errno);
		errno = 0;
		EXPECT(syscall(SYS_uname, bad[i]) == -1 && errno == EFAULT, "uname to %#lx: errno %d", bad[i], errno);
	}
	errno = 0;
	EXPECT(syscall(SYS_uname, DATA + PAGE) == -1 && errno == EFAULT, "uname to a read-only page: errno %d", errno);
	errno = 0;
	EXPECT(syscall(SYS_open, DATA + 2 * PAGE - 1, O_RDONLY) == -1 && errno == ENOENT, "open of an empty name: errno %d", errno);
	*(char *)(DATA + PAGE - 1) = 'x';
	mprotect((void *)(DATA + PAGE), PAGE, PROT_NONE);
	errno = 0;
	EXPECT(syscall(SYS_open, DATA + PAGE - 1, O_RDONLY) == -1 && errno == EFAULT, "open of a name that runs off: errno %d", errno);
}

/* A mapping beyond the end of its file. */
static void past_end_of_file(const void *unused)
{
	(void)unused;
	int fd = memfd_create("short", 0);
	if (ftruncate(fd, 100) == 0)
		mmap((void *)HOLE, 2 * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
	put_code(READ, 3);
	call_code(HOLE + PAGE);
}

/* ioperm opens single ports through the bitmap in the TSS. Port 0x80 is the harmless one. */
static void check_ioperm(void)
{
	if (ioperm(0x80, 1, 1) != 0)
		return;
	outb(0, 0x80);
	sched_yield();
	outb(0, 0x80);
}

static void ioperm_closed(const void *unused)
{
	(void)unused;
	(void)!ioperm(0x80, 1, 1);
	(void)!ioperm(0x80, 1, 0);
	put_code("\xe6\x80", 2);
	call_code(0);
}

/* CR4.TSD: the time stamp counter can be taken from a process. */
static void tsc_forbidden(const void *unused)
{
	(void)unused;
	prctl(PR_SET_TSC, PR_TSC_SIGSEGV);
	put_code("\x0f\x31", 2);
	call_code(0);
}

/* xgetbv is for everyone, xsetbv is not. */
static void xsetbv(const void *unused)
{
	(void)unused;
	put_code("\x31\xc9\x0f\x01\xd0\x0f\x01\xd1", 8); /* xor ecx,ecx; xgetbv; xsetbv */
	call_code(0);
}

static void call_vsyscall(const void *unused)
{
	(void)unused;
	((long (*)(void *))(VSYSCALL + 0x400))(NULL); /* time() */
}

static void read_vsyscall(const void *unused)
{
	(void)unused;
	put_code(READ, 3);
	call_code(VSYSCALL);
}

struct body {
	void (*run)(void);
};

static void run_body(const void *argument)
{
	((const struct body *)argument)->run();
}

static void code_check(const char *name, void (*body)(void))
{
	if (skipped(name))
		return;
	map(DATA, PAGE, PROT_READ | PROT_WRITE);
	struct body wrapped = { body };
	int status = in_child(run_body, &wrapped);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && seen->sig == 0) {
		printf("ok %s\n", name);
		return;
	}
	failures++;
	printf("FAIL %s", name);
	if (seen->message[0])
		printf(" %s", seen->message);
	else if (seen->sig)
		print_seen("expected no signal, got ", seen->sig, seen->code, seen->trap, seen->err, seen->addr, seen->rip);
	else
		printf(" status %#x", status);
	printf("\n");
}

static void body_check(const char *name, void (*body)(const void *), int sig, int code, long trap, int any_addr, unsigned long addr)
{
	if (skipped(name))
		return;
	int status = in_child(body, NULL);
	int good = WIFEXITED(status) && seen->sig == sig && seen->code == code && (sig == 0 || seen->trap == trap) &&
		   (any_addr || seen->addr == addr);
	printf("%s %s", good ? "ok" : "FAIL", name);
	if (!good) {
		failures++;
		printf(" expected sig=%d code=%d trap=%ld addr=%#lx", sig, code, trap, addr);
		print_seen("got ", seen->sig, seen->code, seen->trap, seen->err, seen->addr, seen->rip);
		if (WIFSIGNALED(status))
			printf(" killed by signal %d", WTERMSIG(status));
	} else if (sig) {
		printf(" sig=%d code=%d", sig, code);
	}
	printf("\n");
}

/* ---- what machines may differ in: said, not judged ------------------------------------------------------------- */

static void note_tables(void)
{
	/* sgdt, sidt, smsw, sldt, str. With UMIP Linux emulates them with constants; without, they tell what the CPU has. */
	unsigned char *at = (unsigned char *)DATA;
	put_code("\x0f\x01\x07\x0f\x01\x4f\x10\x0f\x01\x67\x20\x0f\x00\x47\x30\x0f\x00\x4f\x40", 19);
	call_code(DATA);
	uint16_t limit[2], small[3];
	uint64_t base[2];
	memcpy(&limit[0], at, 2);
	memcpy(&base[0], at + 2, 8);
	memcpy(&limit[1], at + 16, 2);
	memcpy(&base[1], at + 18, 8);
	memcpy(&small[0], at + 32, 2);
	memcpy(&small[1], at + 48, 2);
	memcpy(&small[2], at + 64, 2);
	snprintf(seen->message, sizeof seen->message, "sgdt=%#lx/%#x sidt=%#lx/%#x smsw=%#x sldt=%#x str=%#x", base[0], limit[0], base[1], limit[1],
		 small[0], small[1], small[2]);
}

static void note_instruction(const void *argument)
{
	put_code(argument, strlen(argument));
	call_code(DATA);
}

static void note(const char *name, const char *bytes)
{
	int status = in_child(note_instruction, bytes);
	printf("note %s", name);
	if (WIFSIGNALED(status))
		printf(" killed by signal %d\n", WTERMSIG(status));
	else if (seen->sig)
		printf(" sig=%d code=%d trap=%ld rip=+%ld\n", seen->sig, seen->code, seen->trap, (long)(seen->rip - CODE));
	else
		printf(" no signal\n");
}

static int vsyscall_mode(void)
{
	char line[256];
	int mode = 0;
	FILE *maps = fopen("/proc/self/maps", "r");
	while (maps && fgets(line, sizeof line, maps))
		if (strstr(line, "[vsyscall]"))
			mode = strstr(line, " r-xp ") ? 2 : 1;
	if (maps)
		fclose(maps);
	return mode;
}

int main(int argc, char **argv)
{
	unsigned a, b, c = 0, d;
	if (argc == 3 && strcmp(argv[1], "--skip") == 0)
		skip_list = argv[2];
	else if (argc != 1) {
		fprintf(stderr, "usage: signals [--skip NAME,NAME...]\n");
		return 2;
	}
	seen = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	map(DATA + PAGE, PAGE, PROT_READ);
	map(DATA + 2 * PAGE, PAGE, PROT_NONE);

	for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
		signal_check(&checks[i]);

	code_check("flags", check_flags);
	code_check("selectors", check_selectors);
	code_check("cpu-number", check_cpu_number);
	code_check("iretq-to-user", check_iretq);
	code_check("int-0x80", check_int80);
	code_check("compat-code", check_compat);
	code_check("ldt", check_ldt);
	code_check("gs-base", check_gs_base);
	code_check("sigreturn-registers", check_sigreturn);
	code_check("syscall-registers", check_syscall_registers);
	code_check("timer-registers", check_timer);
	code_check("single-step", check_single_step);
	code_check("efault", check_efault);
	code_check("ioperm", check_ioperm);
	body_check("ioperm-closed", ioperm_closed, SIGSEGV, SI_KERNEL, 13, 0, 0);
	body_check("stack-overflow", stack_overflow, SIGSEGV, SEGV_MAPERR, 14, 1, 0);
	body_check("past-end-of-file", past_end_of_file, SIGBUS, BUS_ADRERR, 14, 0, HOLE + PAGE);
	body_check("rdtsc-forbidden", tsc_forbidden, SIGSEGV, SI_KERNEL, 13, 0, 0);
	if (__get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 27)) /* OSXSAVE */
		body_check("xsetbv", xsetbv, SIGSEGV, SI_KERNEL, 13, 0, 0);

	int mode = vsyscall_mode();
	if (mode == 0)
		body_check("vsyscall-call", call_vsyscall, SIGSEGV, SEGV_MAPERR, 14, 0, VSYSCALL + 0x400);
	else
		body_check("vsyscall-call", call_vsyscall, 0, 0, 0, 0, 0);
	if (mode == 2)
		body_check("vsyscall-read", read_vsyscall, 0, 0, 0, 0, 0);
	else
		body_check("vsyscall-read", read_vsyscall, SIGSEGV, SEGV_MAPERR, 14, 0, VSYSCALL);

	struct body tables = { note_tables };
	in_child(run_body, &tables);
	if (seen->message[0])
		printf("note tables %s\n", seen->message);
	else
		printf("note tables sig=%d code=%d\n", seen->sig, seen->code);
	note("icebp", "\xf1");
	note("vmmcall", "\x0f\x01\xd9");
	note("vmcall", "\x0f\x01\xc1");
	note("sysexit", "\x0f\x35");
	note("sysenter", "\x0f\x34");

	if (failures)
		printf("signals FAILED: %d checks\n", failures);
	else
		printf("signals ok\n");
	return failures != 0;
}
