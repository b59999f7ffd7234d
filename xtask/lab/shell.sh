# A shell, for a person.
echo "lodge, lodge-vmm and conform are in /lab; exit ends the lab"
stty sane
PATH=$PATH:/lab exec setsid -c sh -i
