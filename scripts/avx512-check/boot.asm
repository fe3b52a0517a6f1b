; The boot sector: loads NSEC sectors to 0x10000, enters 64-bit mode with the AVX-512 registers switched on, and calls
; 0x10000. One gigabyte is mapped, address for address; the stack ends at 0x180000.
bits 16
org 0x7c00
start: cli
 xor ax,ax
 mov ds,ax
 mov es,ax
 mov ss,ax
 mov sp,0x7c00
 mov [drv],dl
 in al,0x92
 or al,2
 out 0x92,al
 mov cx,NSEC/64+1
.l: push cx
 mov si,dap
 mov ah,0x42
 mov dl,[drv]
 int 0x13
 jc err
 add dword [dap+8],64
 add word [dap+6],0x800
 pop cx
 loop .l
 ; page tables at 0x1000..: PML4, PDPT, PD (1 GiB identity, 2 MiB pages)
 mov edi,0x1000
 xor eax,eax
 mov ecx,0x3000/4
 rep stosd
 mov dword [0x1000],0x2003
 mov dword [0x2000],0x3003
 mov edi,0x3000
 mov eax,0x83
 mov ecx,512
.p: mov [edi],eax
 add eax,0x200000
 add edi,8
 loop .p
 lgdt [gdtr]
 mov eax,0x1000
 mov cr3,eax
 mov eax,cr4
 or eax,(1<<5)|(1<<9)|(1<<10)|(1<<18)
 mov cr4,eax
 mov ecx,0xc0000080
 rdmsr
 or eax,0x100
 wrmsr
 mov eax,cr0
 and eax,~4
 or eax,0x80000003
 mov cr0,eax
 jmp 8:lm
err: mov al,'E'
 out 0xe9,al
 hlt
bits 64
lm: mov ax,16
 mov ds,ax
 mov es,ax
 mov ss,ax
 mov rsp,0x180000
 xor ecx,ecx
 xor edx,edx
 mov eax,0xe7
 xsetbv
 mov rax,0x10000
 call rax
 hlt
align 8
gdt: dq 0
 dq 0x00af9a000000ffff
 dq 0x00cf92000000ffff
gdtr: dw 23
 dd gdt
drv: db 0
align 4
dap: db 16,0
 dw 64
 dw 0,0x1000
 dq 1
times 510-($-$$) db 0
 dw 0xaa55
